"""How the errors of others are put into messages: an error without text is told by its class."""

import types

import fsspec
import pytest

import softprompt_zoo as zoo
from softprompt_zoo.bank.object_store import ObjectStore
from softprompt_zoo.errors import described, first_line, one_line
from softprompt_zoo.examples.chats import Chat
from softprompt_zoo.operations import base_models
from softprompt_zoo.training.comparison import plan
from softprompt_zoo.training.doctor import models
from softprompt_zoo.training.objectives.chat_text import ChatText

TEXTLESS = [AssertionError(), NotImplementedError(), KeyError(), OSError(), ValueError(""), ValueError(" \n\n ")]


@pytest.mark.parametrize("error", TEXTLESS, ids=repr)
@pytest.mark.parametrize("tell", [one_line, first_line, described])
def test_an_error_without_text_is_told_by_its_class(tell, error):
    assert tell(error) == type(error).__name__


@pytest.mark.parametrize(
    ("tell", "told"),
    [(one_line, "no such text at all"), (first_line, "no such text"), (described, "ValueError: no such text")],
)
def test_an_error_with_text_is_told_by_it(tell, told):
    assert tell(ValueError("\n  no such text \n at\tall\n")) == told


def failing(*args, **options):
    raise ValueError


def render(tmp_path, monkeypatch):
    tokenizer = types.SimpleNamespace(chat_template="…", is_fast=True, apply_chat_template=failing)
    ChatText(types.SimpleNamespace(tokenizer=tokenizer)).question(Chat(({"role": "user", "content": "w1"},)))


def open_bank(tmp_path, monkeypatch):
    monkeypatch.setattr(fsspec.core, "url_to_fs", failing)
    ObjectStore("memory://bank", {})


def load_base(tmp_path, monkeypatch):
    monkeypatch.setattr(base_models, "_class", lambda *_: types.SimpleNamespace(from_pretrained=failing))
    base_models._load_base(None, "base", tmp_path, {})


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (render, "does not accept it: ValueError; change the messages"),
        (open_bank, "cannot open the bank at memory://bank: ValueError; check"),
        (load_base, r"cannot be loaded \(ValueError\); name another"),
    ],
)
def test_what_fails_without_text_is_refused_with_its_class(act, told, tmp_path, monkeypatch):
    with pytest.raises(zoo.ZooError, match=told):
        act(tmp_path, monkeypatch)


def test_candidates_and_methods_that_fail_without_text_have_a_reason(monkeypatch):
    monkeypatch.setattr(plan, "try_out", failing)
    monkeypatch.setattr(models, "get_method", failing)
    assert plan._problem(None, None) == models._refusal(None, "prefix_tuning") == "ValueError"

"""Folders of saved prompts that a bank imports."""

import shutil

import peft
import pytest
from helpers.bank_models import TEXT, assert_equal, prompted

import softprompt_zoo as zoo
from softprompt_zoo.bank import importing, verification
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.tokenizer import tiny_tokenizer


def test_a_folder_of_saved_prompts_is_imported(tmp_path, address):
    folder = tmp_path / "saved"
    for name in ("words", "prefix"):
        prompted(names=[name]).save_pretrained(folder / name)
    prompted(names=["words", "made"]).save_pretrained(folder / "two")
    zoo.export(prompted(names=["prefix"], seed=3), folder / "theirs")
    (folder / "notes").mkdir()
    peft.get_peft_model(tiny_model("llama"), peft.LoraConfig()).save_pretrained(folder / "lora")
    model = tiny_model("llama")
    bank = zoo.PromptBank(address, model)
    names = ["prefix", "theirs", "two-made", "two-words", "words"]
    assert sorted(bank.import_folder(folder)) == names
    assert list(bank) == names
    assert bank["theirs"].method == "prefix_tuning"
    (folder / "last.one").mkdir()
    shutil.copytree(folder / "words", folder / "last.one", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"'last\.one', from .*last\.one"):
        zoo.PromptBank(address, model).import_folder(folder, overwrite=True)
    assert list(bank) == names
    shutil.rmtree(folder / "last.one")
    with pytest.raises(zoo.PromptExistsError):
        bank.import_folder(folder)
    with pytest.raises(zoo.CheckpointError, match="holds no saved prompt"):
        bank.import_folder(folder / "notes")
    with pytest.raises(zoo.CheckpointError, match="holds no saved prompt"):
        bank.import_folder(folder / "lora")
    assert bank.import_folder(folder / "two", overwrite=True) == ["words", "made"]
    assert len(bank) == 6


def test_two_sources_of_one_name_are_refused(tmp_path, address):
    folder = tmp_path / "saved"
    prompted(names=["words", "prefix"]).save_pretrained(folder / "x")
    prompted(names=["made"]).save_pretrained(folder / "x-words")
    bank = zoo.PromptBank(address, tiny_model("llama"))
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="would both be stored as 'x-words'; rename one of the folders") as raised:
            bank.import_folder(folder, overwrite=overwrite)
        assert f"prompt 'words' in {folder / 'x'} and prompt 'made' in {folder / 'x-words'} would" in str(raised.value)
        assert len(bank) == 0
    (folder / "x-words").rename(folder / "y")
    assert bank.import_folder(folder) == ["x-words", "x-prefix", "y"]


def test_nothing_is_read_of_what_cannot_be_named(tmp_path, monkeypatch):
    model = prompted()
    model.save_pretrained(tmp_path / "saved" / "good")
    model.save_pretrained(tmp_path / "saved" / "z bad")
    bank = zoo.PromptBank(tmp_path / "bank", model)
    monkeypatch.setattr(importing, "read_folder", lambda *given: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="prompt name is 'z bad'"):
        bank.import_folder(tmp_path / "saved")


def test_exports_for_engines_are_imported(tmp_path):
    model = prompted(names=["words", "made"])
    tokenizer = tiny_tokenizer()
    zoo.export(model, tmp_path / "saved" / "bare", to="embeddings", name="words")
    zoo.export(model, tmp_path / "saved" / "both", to="vocabulary", tokenizer=tokenizer)
    server = tiny_model("llama")
    bank = zoo.PromptBank(tmp_path / "bank", server)
    names = bank.import_folder(tmp_path / "saved")
    assert names[0] == "bare"
    expected = model(input_ids=TEXT, prompts="words").logits
    zoo.get_method("prompt_tuning")(server, "own", num_virtual_tokens=2)
    server.prompts.bank = bank
    assert_equal(server(input_ids=TEXT, prompts="bare").logits, expected)
    assert_equal(server(input_ids=TEXT, prompts=names[1]).logits, expected)
    assert bank.import_folder(tmp_path / "saved" / "bare", overwrite=True) == ["words"]


def damaged(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def of_another_model(folder):
    shutil.rmtree(folder)
    zoo.get_method("prompt_tuning")(tiny_model("gpt2"), num_virtual_tokens=2).save_pretrained(folder)


def of_another_method(folder):
    (folder / "softprompt_zoo.json").unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "CARTRIDGE", "num_virtual_tokens": 2}')


def without_numbers(folder):
    (folder / "softprompt_zoo.json").unlink()
    (folder / "adapter_model.safetensors").unlink()


def check_others(folder, address, change):
    for name in ("a", "b", "c"):
        prompted(names=["words"]).save_pretrained(folder / name)
    change(folder / "b")
    bank = zoo.PromptBank(address, tiny_model("llama"))
    with pytest.warns(
        UserWarning, match=r"1 folders in .* could not be read, the others were stored; b: \w+Error: "
    ) as seen:
        stored = bank.import_folder(folder)
    assert (stored, list(bank)) == (["a", "c"], ["a", "c"])
    assert len([one for one in seen if "could not be read" in str(one.message)]) == 1
    return bank


CHANGES = [damaged, of_another_model, of_another_method, without_numbers]


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_cannot_be_read_is_listed_and_the_others_are_stored(change, tmp_path, address):
    bank = check_others(tmp_path / "saved", address, change)
    with pytest.raises(zoo.ZooError):
        bank.import_folder(tmp_path / "saved" / "b")
    for name in ("a", "c"):
        shutil.rmtree(tmp_path / "saved" / name)
    with pytest.raises(zoo.CheckpointError, match=r"no prompt in .* can be read; b: \w+Error: "):
        bank.import_folder(tmp_path / "saved", overwrite=True)
    assert list(bank) == ["a", "c"]


def test_the_check_notices_a_folder_that_stops_the_others(tmp_path, address, monkeypatch):
    monkeypatch.setattr(importing, "_noted", lambda folder, problems, noted=importing._noted: noted(folder, None))
    with pytest.raises((zoo.ZooError, pytest.fail.Exception)):
        check_others(tmp_path / "saved", address, damaged)


def test_bars_show_how_far_an_import_and_a_check_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)  # commands run by other tests turn it off
    monkeypatch.setattr(importing, "BAR_AFTER", 0)
    monkeypatch.setattr(verification, "BAR_AFTER", 0)
    for name in ("one", "two"):
        prompted(names=["words"]).save_pretrained(tmp_path / "saved" / name)
    bank = zoo.PromptBank(tmp_path / "bank", tiny_model("llama"))
    bank.import_folder(tmp_path / "saved")
    assert "importing prompts" in (shown := capsys.readouterr().err)
    assert "/2" in shown
    assert bank.verify() == {}
    assert "verifying prompts" in capsys.readouterr().err

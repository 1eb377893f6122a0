"""Banks at every kind of place."""

import pytest
from helpers.bank_models import METHODS, prompted

import softprompt_zoo as zoo


@pytest.fixture(params=["folder", "memory://{}", "file://{}"])
def address(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "bank")
    return request.param.format(tmp_path / "bank")


@pytest.fixture
def filled(address):
    model = prompted(names=METHODS)
    bank = zoo.PromptBank(address, model)
    bank.add_many(model.prompts)
    return bank, model

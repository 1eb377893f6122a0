"""The information about a run on its prompt's card."""

import json

from helpers import loopback_hub
from helpers.tiny_runs import tiny_settings, train
from huggingface_hub import ModelCard

from softprompt_zoo.files.card import card_file


def test_a_runs_card_has_its_numbers_and_no_folder_of_the_user(place, tmp_path, monkeypatch):
    output = tmp_path / "run"
    settings = tiny_settings(place, output, steps=2)
    train(settings)
    card = ModelCard.load(output / "README.md")
    with loopback_hub.serve(monkeypatch, tmp_path / "cache"):
        card.validate()
    record = json.loads((output / "training.json").read_text())
    score = record["results"]["trained prompt"]
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {
        "loss": round(score["loss"], 4),
        **{key: round(value, 4) for key, value in score["metrics"].items()},
    }
    assert {result.dataset_type for result in card.data.eval_results} == {"validation.jsonl"}
    assert f"| trained prompt | 3 | {score['loss']:.3f} |" in card.text
    assert record["data"]["train"]["sha256"] in card.text
    assert "softprompt-zoo train model prefix_tuning" in card.text
    assert "--data train.jsonl" in card.text
    assert str(place) not in str(card)
    assert str(tmp_path) not in str(card)
    train(settings, overwrite=True)
    assert card_file.is_generated((output / "README.md").read_text())
    (output / "README.md").write_text("mine")
    train(settings, overwrite=True)
    assert (output / "README.md").read_text() == "mine"

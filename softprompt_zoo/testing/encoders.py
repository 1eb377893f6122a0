"""Additional tiny encoders, for the large table; `models.py` has those for every test run."""

from collections.abc import Callable

from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    EuroBertConfig,
    EuroBertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from softprompt_zoo.testing.sizes import ROTARY


def _roberta() -> PreTrainedModel:
    return RobertaForMaskedLM(RobertaConfig(**ROTARY))


def _albert() -> PreTrainedModel:
    return AlbertForMaskedLM(AlbertConfig(embedding_size=24, **{**ROTARY, "num_hidden_layers": 3}))


def _electra() -> PreTrainedModel:
    return ElectraForMaskedLM(ElectraConfig(embedding_size=24, **ROTARY))


def _deberta_v2() -> PreTrainedModel:
    relative = {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 4,
        "share_att_key": True,
    }
    config = DebertaV2Config(norm_rel_ebd="layer_norm", position_biased_input=False, **relative, **ROTARY)
    return DebertaV2ForMaskedLM(config)


def _mpnet() -> PreTrainedModel:
    return MPNetForMaskedLM(MPNetConfig(**ROTARY))


def _eurobert() -> PreTrainedModel:
    return EuroBertForMaskedLM(EuroBertConfig(num_key_value_heads=2, mask_token_id=3, **ROTARY))


ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "roberta": _roberta,
    "albert": _albert,
    "electra": _electra,
    "deberta_v2": _deberta_v2,
    "mpnet": _mpnet,
    "eurobert": _eurobert,
}
"""Builders of the tiny models, by architecture."""

"""Tiny models that read images and text, built from configs, and their inputs."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from softprompt_zoo.testing.sizes import ROTARY, VOCABULARY

IMAGE = 99
"""The placeholder token for an image."""
PATCHES = 4
"""Number of tokens that an image takes."""
LENGTHS = (9, 6, 11)
"""Number of tokens in each row, including those of its image."""


def llava():
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = LlamaConfig(num_key_value_heads=2, **ROTARY)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1)
    )


def qwen2_5_vl(**more):
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 1, "out_hidden_size": 32, "window_size": 16}
    vision |= {"fullatt_block_indexes": [1], "in_channels": 3}
    text = {**ROTARY, "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    text |= more
    text["rope_parameters"]["rope_theta"] = 10000.0
    ids = {"image_token_id": IMAGE, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


def windowed_qwen2_5_vl():
    """Build a model whose second layer has a window, counted in tokens; an image's tokens share positions."""
    model = qwen2_5_vl(use_sliding_window=True, sliding_window=5, max_window_layers=1)
    model.set_attn_implementation("eager")
    return model


MODELS = {"llava": llava, "qwen2_5_vl": qwen2_5_vl}
WINDOWED = {"windowed_qwen2_5_vl": windowed_qwen2_5_vl}


def vision_model(architecture, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (MODELS | WINDOWED)[architecture]()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.3)
    model.generation_config.eos_token_id = None
    return model.eval()


def rows(architecture, numbers=range(3)):
    """Return texts with an image in each, `(1, length)`, and the images as the model takes them."""
    generator = torch.Generator().manual_seed(4)
    texts, images = [], []
    for length in LENGTHS:
        text = torch.randint(3, VOCABULARY - 5, (1, length), generator=generator)
        text[0, 2 : 2 + PATCHES] = IMAGE
        texts.append(text)
        shape = (1, 3, 8, 8) if architecture == "llava" else (16, 3 * 4 * 4)
        images.append(torch.randn(shape, generator=generator))
    return [texts[n] for n in numbers], torch.cat([images[n] for n in numbers])


def arguments(architecture, ids, images, mask=None):
    """Return the arguments of a forward pass or of `generate`."""
    found = {"input_ids": ids, "pixel_values": images, "attention_mask": torch.ones_like(ids) if mask is None else mask}
    if architecture != "llava":
        found["image_grid_thw"] = torch.tensor([[1, 4, 4]] * ids.shape[0])
        found["mm_token_type_ids"] = (ids == IMAGE).int()
    return found

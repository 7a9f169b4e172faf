"""Tiny random SmolVLA, π0 and π0.5 checkpoints, made and served by LeRobot's interpreter; nothing is downloaded.

    python tiny_vla.py make smolvla|pi0|pi05 <folder>
    python tiny_vla.py serve <serve_policy.py> <its options>

LeRobot knows π0 and π0.5 in two sizes, both in billions of parameters: the second command shrinks them, too.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

STATE, ACTION, SIDE = 4, 2, 64  # of the toy task with a goal of its own in each episode and a picture
IMAGES = ("observation.images.image",)
VOCABULARY = ["<unk>", "<pad>", "<image>", "<fake>", "<global-img>", "<end>", "pick", "up", "the", "bowl", "\n"]
VOCABULARY += list("0123456789")  # π0.5 reads the state as text
SIZES = {"chunk_size": 10, "n_action_steps": 5, "device": "cpu"}


def make(kind: str, folder: Path) -> None:
    shrink()
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    options = vlm(folder / "vlm") if kind == "smolvla" else {"image_resolution": (28, 28), "num_inference_steps": 4}
    images = {name: PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE)) for name in IMAGES}
    config = make_policy_config(
        kind,
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (STATE,)), **images},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        **SIZES,
        **options,
    )
    policy = get_policy_class(kind)(config)
    for parameter in policy.parameters():  # at LeRobot's own scale a tiny random model hardly moves with its noise
        parameter.data.mul_(2.0)
    policy.save_pretrained(folder)
    ones = torch.ones
    statistics = {
        "observation.state": {"mean": 0 * ones(STATE), "std": ones(STATE), "q01": -ones(STATE), "q99": ones(STATE)},
        "action": {"mean": 0 * ones(ACTION), "std": 0.3 * ones(ACTION), "q01": -ones(ACTION), "q99": ones(ACTION)},
    }
    with_tokenizer(folder)
    for processor in make_pre_post_processors(config, dataset_stats=statistics):
        processor.save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), digits])
    extra = {"fake_image_token": "<fake>", "image_token": "<image>", "global_image_token": "<global-img>"}
    extra["end_of_utterance_token"] = "<end>"
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=extra
    )


def vlm(folder: Path) -> dict:
    """A folder that plays SmolVLM's repository."""
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer(), SmolVLMVideoProcessor(), image_seq_len=4).save_pretrained(
        folder
    )
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "pad_token_id": 1}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": 16}
    SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=2).save_pretrained(folder)
    return {"vlm_model_name": str(folder), "load_vlm_weights": False, "num_vlm_layers": 2, "num_steps": 4,
            "resize_imgs_with_padding": (SIDE, SIDE)}  # fmt: skip


def with_tokenizer(folder: Path) -> None:
    """π0's processors name PaliGemma's tokenizer on the hub; here they name this folder."""
    from lerobot.processor import tokenizer_processor

    tokenizer().save_pretrained(folder / "tokenizer")
    wanted = tokenizer_processor.TokenizerProcessorStep.__post_init__

    def local(step) -> None:
        if step.tokenizer_name is not None and not Path(step.tokenizer_name).is_dir():
            step.tokenizer_name = str(folder / "tokenizer")
        wanted(step)

    tokenizer_processor.TokenizerProcessorStep.__post_init__ = local


def shrink() -> None:
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi05 import modeling_pi05

    def paligemma():
        config = CONFIG_MAPPING["paligemma"]()
        for name, size in {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}.items():
            setattr(config.vision_config, name, size)
        return config

    for modeling in (modeling_pi0, modeling_pi05):
        whole = modeling.PaliGemmaForConditionalGenerationWithPiGemma

        def small(config, whole=whole):
            config.vision_config.projection_dim = config.text_config.hidden_size
            config.vision_config.intermediate_size = 48
            config.text_config.vocab_size = 64
            return whole(config=config)

        gemma = modeling.GemmaConfig(width=32, depth=2, mlp_dim=48, num_heads=2, num_kv_heads=1, head_dim=16)
        modeling.get_gemma_config = lambda variant, gemma=gemma: gemma
        modeling.CONFIG_MAPPING = {"paligemma": paligemma, "gemma": small_gemma}
        modeling.PaliGemmaForConditionalGenerationWithPiGemma = small


def small_gemma(**options):
    return CONFIG_MAPPING["gemma"](**(options | {"vocab_size": 64}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, what, *rest = sys.argv[1:]
    if command == "make":
        make(what, Path(rest[0]))
    else:
        shrink()
        sys.argv = [what, *rest]
        runpy.run_path(what, run_name="__main__")

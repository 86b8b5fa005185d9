"""All configurations in configs/ can be parsed, and their models built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType
from transformers import GPTNeoConfig

from tests.conftest import ROOT
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.model.modeling import GPTNeoForCausalLM, build_model, count_parameters
from tinystories_hf.training.batch import plan_batch

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
LAUNCHERS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
PARAMETERS = {"xs": 3_647_680, "xs-paper": 3_745_984, "quickstart": 531_200}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_builds_a_model_of_the_stated_size(path: Path) -> None:
    arguments = parse_arguments(["--config", str(path)])
    tokenizer = train_tokenizer(toy_stories(200), 300, arguments.data.context_length)
    with torch.device("meta"):
        model = build_model(arguments.model, tokenizer, arguments.data.context_length)
    assert count_parameters(model).total == PARAMETERS[path.stem]
    plan_batch(arguments.training, 1)


def test_xs_follows_the_specification() -> None:
    model, data, training, _ = parse_arguments([])
    assert (model.num_layers, model.hidden_size, model.num_heads) == (8, 64, 16)
    assert (data.context_length, model.vocab_size, training.learning_rate) == (512, 50257, 5e-4)
    assert {model.attention_dropout, model.embed_dropout, model.resid_dropout} == {0.1}
    assert data.dataset == "roneneldan/TinyStories"
    assert data.dataset_revision == "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
    assert data.tokenizer == "EleutherAI/gpt-neo-125m"


def test_the_paper_configuration_follows_the_paper() -> None:
    model, _, training, _ = parse_arguments(["--config", str(ROOT / "configs" / "xs-paper.yaml")])
    assert (training.global_batch_size, training.num_train_epochs) == (1280, 20)
    assert (training.lr_scheduler_type, training.weight_decay) == ("constant", 0.1)
    assert (training.adam_beta1, training.adam_beta2) == (0.9, 0.95)
    assert {model.attention_dropout, model.embed_dropout, model.resid_dropout} == {0.0}


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_accelerate_reads_each_launch_configuration(path: Path) -> None:
    loaded = load_config_from_file(str(path))
    assert loaded.num_processes >= 1
    plan_batch(parse_arguments([]).training, loaded.num_processes)


def test_there_are_five_launch_configurations() -> None:
    names = [path.stem for path in LAUNCHERS]
    assert names == ["cpu", "fsdp", "multi_gpu", "multi_node", "one_gpu"]


def test_accelerate_knows_every_key_of_the_fsdp_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # accelerate silently ignores unknown keys.
    file = ROOT / "configs" / "accelerate" / "fsdp.yaml"
    asked = launch_command_parser().parse_args(["--config_file", str(file), "scripts/train.py"])
    arguments, _, _ = _validate_launch_command(asked)
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.transformer_cls_names_to_wrap == ["GPTNeoBlock"]
    with torch.device("meta"):
        model = GPTNeoForCausalLM(GPTNeoConfig(num_layers=2, attention_types=[[["global"], 2]]))
    plugin.set_auto_wrap_policy(model)
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert sum(isinstance(module, tuple(wrapped)) for module in model.modules()) == 2

"""The private members of Transformers that the Trainer of this package relies on."""

from __future__ import annotations

import ast
import inspect
import re

import pytest
from transformers import PreTrainedModel, Trainer

from tinystories_hf.training import trainer
from tinystories_hf.training.private_members import (
    OVERRIDDEN_PRIVATE_METHODS,
    USED_PRIVATE_MEMBERS,
)
from tinystories_hf.training.trainer import StoryTrainer


def is_there(name: str) -> bool:
    """Return whether Transformers has a member: an attribute, or one that the Trainer assigns."""
    if hasattr(Trainer, name) or hasattr(PreTrainedModel, name):
        return True
    return re.search(rf"self\.{name} = ", inspect.getsource(Trainer)) is not None


@pytest.mark.parametrize("name", [*OVERRIDDEN_PRIVATE_METHODS, *USED_PRIVATE_MEMBERS])
def test_transformers_still_has_a_private_member(name: str) -> None:
    reasons = OVERRIDDEN_PRIVATE_METHODS | USED_PRIVATE_MEMBERS
    assert is_there(name), f"this release has no {name} any more, needed for: {reasons[name]}"


@pytest.mark.parametrize("name", OVERRIDDEN_PRIVATE_METHODS)
def test_transformers_still_uses_an_overridden_private_method(name: str) -> None:
    """The Trainer must use the method itself, with arguments that the override accepts."""
    source = inspect.getsource(Trainer)
    reason = OVERRIDDEN_PRIVATE_METHODS[name]
    assert re.search(rf"self\.{name}\b", source), f"this release does not use {name}: {reason}"
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"self.{name}"
    ]
    signature = inspect.signature(getattr(StoryTrainer, name))
    for call in calls:
        named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        signature.bind(None, *call.args, **named)


def test_all_private_members_that_are_used_are_listed() -> None:
    tree = ast.parse(inspect.getsource(trainer))
    (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef)
              if node.name == "StoryTrainer")  # fmt: skip
    (init,) = (node for node in cls.body if getattr(node, "name", "") == "__init__")
    own = {
        node.attr
        for node in ast.walk(init)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    methods = {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr)
    }
    overridden = {name for name in methods if hasattr(Trainer, name) and re.match("_[^_]", name)}
    assert overridden == OVERRIDDEN_PRIVATE_METHODS.keys()
    assert used - own - methods == USED_PRIVATE_MEMBERS.keys()

"""The private members of Transformers that `StoryTrainer` overrides or uses.

They may change in any release; tests/training/test_trainer.py reports those that are gone or have
changed.
"""

from __future__ import annotations

OVERRIDDEN_PRIVATE_METHODS = {
    "_get_train_sampler": "leave out the rows that do not fill a step",
    "_evaluate": "skip or interrupt an evaluation when a stop is requested",
    "_determine_best_metric": "an evaluation that is postponed has no metric",
    "_save_checkpoint": "save checkpoints atomically",
    "_get_output_dir": "save checkpoints to a temporary folder first",
    "_issue_warnings_after_load": "do not warn about the tied head",
}
USED_PRIVATE_MEMBERS = {
    "_load_from_checkpoint": "load the weights of a run that only has to be finished",
    "_load_best_model": "load the best weights of a run that only has to be finished",
    "_tr_loss": "the running loss since the last log, saved and restored",
    "_globalstep_last_logged": "the step of the last log, saved and restored",
    "_tied_weights_keys": "the name of the tied head (of PreTrainedModel)",
}

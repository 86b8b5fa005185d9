"""How good a model is: measures that stand in no need of the Trainer."""

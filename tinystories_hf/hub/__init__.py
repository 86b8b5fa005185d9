"""Publishing on the Hugging Face Hub: runs, checkpoints as branches, pages as Spaces.

Use `publish.publish` and `space.publish_space`.
"""

"""Environments: ManiSkill and a toy task, and the demonstrations recorded in them.

The only package that imports ``mani_skill`` or ``sapien``, and only once an environment is made.
"""

"""tiny_vla.py is for LeRobot's interpreter."""

collect_ignore = ["tiny_vla.py"]

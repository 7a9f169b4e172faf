"""What pytest shall not look into."""

collect_ignore = ["lerobot/make.py"]  # imports LeRobot, which is not here

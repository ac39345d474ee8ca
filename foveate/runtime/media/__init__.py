"""Pictures and video files."""

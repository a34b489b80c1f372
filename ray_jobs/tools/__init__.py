"""What people ask of what is sealed, one file a command: files or sealed folders come in, a table or a file goes out.

Each is `sft-diversity <tool>`. A tool may stand on stages, and no stage on a tool. Open `pick.py` first.
"""

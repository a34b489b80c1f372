"""Where samples come from: files of every known format, hubs, and the corpora that are built out of what is installed."""

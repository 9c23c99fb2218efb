"""Program streams: the interpreter as actors; fork spawns, join collects."""

"""Files here and behind URLs: read safely, written whole or not at all."""

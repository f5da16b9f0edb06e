"""What keeps the notebooks in order: run them, measure them, list them. No part of the package."""

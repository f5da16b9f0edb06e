"""A camera's pipeline, learned from its own raw + JPEG pairs."""

from r2l.learn.alignment import AlignmentError, Pair, align, open_picture
from r2l.learn.fitting import Learned, learn_pipeline

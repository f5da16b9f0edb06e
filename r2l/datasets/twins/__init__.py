"""Data sets drawn by code, from a seed, through the published cameras.

What they are for: lessons, tests and a first run of an experiment without a download. A twin stands in
for a published set and has its camera, classes, scale, optics and (closely) its channel statistics; it
holds nothing of its images. No result on it is a result about blood or about cars. Nothing in it favours
or hurts any pipeline.

Reproducible: item i depends on i and the arguments only; ``intensity`` changes how many photons are
recorded, not what lies there. Any order, any number of workers.
"""

"""Looking at what was made: consumers of samplers and runs.

sampler.py   a sampler as text: its rows, P, Q, R and W
plot.py      the same as a picture, SVG or PNG
scene.py     rectangles and words, drawn as either
grid.py      rows of words as lines of text
bench/       where a picture's time goes, and what would save some of it
"""

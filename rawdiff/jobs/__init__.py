"""From what somebody asks for to files: everything between the command line and the model.

    request.py    what is asked for, checked by its words and numbers alone; one laid over another
    extras.py     LoRAs and embeddings in it; added.py: opened
    words.py      one from the words of the command line
    manifest.py   many of them in a file of JSON lines
    remake.py     one from the recipe in a picture
    recorded.py   a scheduler from what a recipe says of it
    job.py        a request with nothing left open, its recipe and its id
    place.py      which weights, where, and how
    planner.py    jobs from requests, without a weight being read; workshop.py: draws them
    prepared.py   words and maps prepared once for many pictures
    output.py     folders and names
    preview.py    each step as a small picture
    generate.py   what `rawdiff gen` does
    batch.py      what `rawdiff batch` does
    prompt.py     what `rawdiff prompt` shows

request.py, extras.py and words.py import nothing heavy, and so nothing is imported here.
"""

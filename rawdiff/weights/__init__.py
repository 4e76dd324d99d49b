"""The only place where weight files are opened: where a model is, what its files hold, and its parts, loaded.

The story, from the outside in:

    source      a folder, a file, an alias, a hub id or the embedded model, behind one interface
    registry    aliases, mirrors, and repositories that are gone
    hub         talking to a model hub        snapshot, hub_cache, hub_errors: its files, checked, in words
    defaults    what a model is meant to be used with
    swap        a model with the VAE of another; merge: the weighted sum of several
    files       a part's config and files, before a weight is read
    parts       loaders; text: the tokenizer; schedulers: by the names people know (scheduler_names)
    build       an empty module from a config, known classes only
    fill        every tensor accounted for, or an error that names file and key; renames: the known exceptions
    choose      which of a folder's files hold the weights
    single      a checkpoint in one file; family: what its tensors tell; layouts: which parts it holds; original:
                names then and now; vocabulary: CLIP's tokenizer
    tensorfile  a file of tensors; header, sniff: is it what it says; torchfile: an old pickle; disk: its bytes
    lora        a LoRA's file; lora_alpha, lora_kinds: what it is; lora_layers: whose; adapters: into the weights
    embedding   a textual-inversion file
    devices     where to compute, in which precision, in how much memory; digests: SHA-256 of files
    heap        what happens to memory that is let go of; room: memory for a network's weights

diffusers and transformers are imported when a part is loaded, not before.
"""

from __future__ import annotations

from rawdiff.weights.adapters import Adapters
from rawdiff.weights.defaults import Defaults, read_defaults, vae_dtype
from rawdiff.weights.devices import check_memory, choose_device, choose_dtype, free_bytes, use_real_cores
from rawdiff.weights.digests import check_unchanged
from rawdiff.weights.embedding import Embedding, check_trigger, read_embedding
from rawdiff.weights.files import hashes, part_files, planned_bytes, planned_layers, read_config
from rawdiff.weights.heap import keep_freed_memory
from rawdiff.weights.hub import Hub
from rawdiff.weights.lora import Lora, read_lora
from rawdiff.weights.lora_layers import Layers
from rawdiff.weights.parts import (
    load_controlnet,
    load_scheduler,
    load_text_encoder,
    load_text_encoder_2,
    load_unet,
    load_vae,
)
from rawdiff.weights.registry import aliases
from rawdiff.weights.single import is_file
from rawdiff.weights.source import EMBEDDED, Source, open_source
from rawdiff.weights.swap import with_vae
from rawdiff.weights.text import load_tokenizer

__all__ = [
    "EMBEDDED",
    "Adapters",
    "Defaults",
    "Embedding",
    "Hub",
    "Layers",
    "Lora",
    "Source",
    "aliases",
    "check_memory",
    "check_trigger",
    "check_unchanged",
    "choose_device",
    "choose_dtype",
    "free_bytes",
    "hashes",
    "is_file",
    "keep_freed_memory",
    "load_controlnet",
    "load_scheduler",
    "load_text_encoder",
    "load_text_encoder_2",
    "load_tokenizer",
    "load_unet",
    "load_vae",
    "open_source",
    "part_files",
    "planned_bytes",
    "planned_layers",
    "read_config",
    "read_defaults",
    "read_embedding",
    "read_lora",
    "use_real_cores",
    "vae_dtype",
    "with_vae",
]

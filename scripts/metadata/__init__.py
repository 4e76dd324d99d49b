"""The prompts and depth maps of `metadata/`, drawn from nothing: `scripts/make_metadata` makes all of them again.

`solids` composes scenes of the embedded model's world by hand; `raycast` is a small ray caster for everything else,
`rooms` and `outdoors` are what it draws; `files` writes maps and manifests.
"""

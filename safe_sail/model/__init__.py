"""The model layer: a Hugging Face causal language model read and edited by `Site`.

architectures.py knows module paths, load.py opens folders, handle.py runs passes; everything else of the library speaks
to `HookedModel`.
"""

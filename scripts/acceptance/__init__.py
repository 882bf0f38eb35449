"""The steps of ``scripts/gpu_acceptance.py``: what can only be known on a TensorRT and a GPU.

``findings`` and ``record`` say what a result is and how it is kept; ``children`` runs each step in its own process;
``machine`` knows which libraries are loaded. ``calls``, ``facts``, ``parity``, ``engines`` and ``performance`` ask
the questions, through ``building`` and on the networks of ``networks``; ``rules`` is the algorithm written out once
more, every rule of it changeable.
"""

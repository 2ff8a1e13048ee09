""":class:`policy_noise.RandomShading` as a transform of other libraries.

There is one module per library, and each imports its library. Each class takes every setting of
:class:`policy_noise.RandomShading` as a keyword argument, draws from the library's own random state, and keeps the
images' type and dtype. Import the module that you need::

    from policy_noise.adapters.monai import RandShadingd
"""

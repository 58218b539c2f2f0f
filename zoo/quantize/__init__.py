"""The quantizer library: vectors [..., d] to ids [..., q] and back. See zoo.types.Quantizer."""

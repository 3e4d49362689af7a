"""The Landscape tab of TensorBoard: a plugin that serves records, and the viewer of them."""

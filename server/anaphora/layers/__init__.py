"""What models are made of. A layer owns its parameters: this rank's share of them, and their place in a checkpoint.

    layer = RowParallelLinear(in_features, out_features, placement)   memory for this rank's share, not initialised
    layer.parts("model.layers.0.mlp.down_proj")                       {checkpoint name: Part}, for the loader
    y = layer(x)                                                      all that it reads is an argument or a parameter

Layers are plain callables, not `torch.nn.Module`: this is inference, so there are no gradients, hooks or modes to
keep, and a call has a signature that a type checker can see.
"""

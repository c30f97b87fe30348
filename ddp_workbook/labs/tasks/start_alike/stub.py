def start_alike(module, source=0):
    """Give every rank the parameters and buffers of rank `source`, in place.

    module: an nn.Module, with other values on every rank. The process group exists. The tensors must stay the same
    objects, since an optimizer may hold them already. Frozen parameters and buffers of whole numbers count too.
    """
    raise NotImplementedError

"""Machine code as a source: what the kernels of a cubin or a library are made of.

A file holds cubins (`fatbin`), a cubin kernels with their footprints (`kernel`), a kernel
instructions (`sass`), of which some are loops (`loops`); what a trip costs on a device is told by
its profile (`trip`). Needs nvdisasm and pyelftools (the `machine-code` extra), no GPU.
"""

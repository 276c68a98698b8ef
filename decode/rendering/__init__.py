"""Pictures of molecules: densities of kernels, in colours, on screen and in files."""

from decode.rendering.colours import Channels, Colouring, Density, Scale, depth_range
from decode.rendering.files import picture_file, save_picture, save_spooled
from decode.rendering.picture import Painted, Picture, painted, picture_of, render_image
from decode.rendering.settings import Contrast, Rendering
from decode.rendering.spool import Spool
from decode.rendering.spots import counted

__all__ = [
    "Channels",
    "Colouring",
    "Contrast",
    "Density",
    "Painted",
    "Picture",
    "Rendering",
    "Scale",
    "Spool",
    "counted",
    "depth_range",
    "painted",
    "picture_file",
    "picture_of",
    "render_image",
    "save_picture",
    "save_spooled",
]

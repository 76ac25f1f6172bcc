"""A small image in every format that Pillow reads without other programs: written by Pillow, or by hand where it has no writer."""

import io
import random
import struct
import warnings

from PIL import Image

WIDTH, HEIGHT = 24, 20

# Options of Pillow's writers, which choose other decoders, by a name of their own: the format, the mode, and the options
VARIANTS = {
    "jpeg-progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg-cmyk": ("JPEG", "CMYK", {}),
    "mpo": ("MPO", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]}),
    "png-16-bit": ("PNG", "I;16", {}),
    "png-palette": ("PNG", "P", {"transparency": 3}),
    "png-animated": ("PNG", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]}),
    "gif-animated": ("GIF", "P", {"save_all": True, "append_images": [Image.new("P", (WIDTH, HEIGHT), 7)]}),
    "webp-lossless": ("WEBP", "RGBA", {"lossless": True}),
    "webp-animated": ("WEBP", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]}),
    "tiff-lzw": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "tiff-deflate": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "tiff-jpeg": ("TIFF", "RGB", {"compression": "jpeg"}),
    "tiff-fax": ("TIFF", "1", {"compression": "group4"}),
    "tiff-float": ("TIFF", "F", {}),
    "tga-packed": ("TGA", "RGB", {"compression": "tga_rle"}),
    "bmp-palette": ("BMP", "P", {}),
    "ppm-gray": ("PPM", "L", {}),
    "dds-dxt1": ("DDS", "RGB", {"pixel_format": "DXT1"}),
}
# Their writers need another program; or write large files
NOT_WRITTEN = {"BUFR", "EPS", "GRIB", "HDF5", "ICNS", "WMF"}


def picture(mode: str = "RGB") -> Image.Image:
    """Return an image with detail in every channel."""
    image = Image.frombytes("RGB", (WIDTH, HEIGHT), random.Random(0).randbytes(3 * WIDTH * HEIGHT))
    return image.convert("L").convert(mode) if mode in ("I;16", "F") else image.convert(mode)


def written(kind: str, mode: str, options: dict[str, object]) -> bytes:
    """Return the file that Pillow writes."""
    stream = io.BytesIO()
    picture(mode).save(stream, kind, **options)
    return stream.getvalue()


def by_hand() -> dict[str, bytes]:
    """Return files in formats that Pillow reads but does not write."""
    gray, rgb = picture("L").tobytes(), picture().tobytes()
    pcx = written("PCX", "RGB", {})
    frame = struct.pack("<I2H8xIH", 22 + len(gray), 0xF1FA, 1, 6 + len(gray), 16) + gray
    icon = bytearray(written("ICO", "RGB", {"bitmap_format": "bmp", "sizes": [(16, 16)]}))
    icon[2] = 2  # the kind of a cursor
    stream = io.BytesIO()
    picture().resize((16, 16)).save(stream, "PNG")
    png = stream.getvalue()
    card = b"".join(f"{name:8}= {value:>20}".ljust(80).encode() for name, value in (
        ("SIMPLE", "T"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", WIDTH), ("NAXIS2", HEIGHT)
    ))  # fmt: skip
    colors = "".join(f'"{value:02x} c #{value:02x}{value:02x}{value:02x}",\n' for value in range(256))
    rows = ",\n".join(f'"{gray[row * WIDTH : (row + 1) * WIDTH].hex()}"' for row in range(HEIGHT))
    return {
        "CUR": bytes(icon),
        "DCX": struct.pack("<3I", 0x3ADE68B1, 12, 0) + pcx,
        "FITS": (card + b"END".ljust(80)).ljust(2880) + gray,
        "FLI": struct.pack("<I4H", 0, 0xAF11, 1, WIDTH, HEIGHT).ljust(128, b"\0") + frame,
        "FTEX": b"FTEX" + struct.pack("<8i", 0, WIDTH, HEIGHT, 1, 1, 1, 32, len(rgb)) + rgb,
        "GBR": struct.pack(">5I", 28, 2, WIDTH, HEIGHT, 1) + b"GIMP" + struct.pack(">I", 10) + gray,
        "ICNS": b"icns" + struct.pack(">I", 16 + len(png)) + b"icp4" + struct.pack(">I", 8 + len(png)) + png,
        "IMT": f"* tools\nwidth {WIDTH}\nheight {HEIGHT}\npixel n8\n".encode() + b"\x0c" + gray,
        "MCIDAS": struct.pack(">64i", 0, 4, *[0] * 6, HEIGHT, WIDTH, 1, 0, 0, 1, *[0] * 19, 256, *[0] * 30) + gray,
        "PIXAR": b"\x80\xe8\0\0".ljust(416, b"\0") + struct.pack("<6H", HEIGHT, WIDTH, 0, 0, 14, 2) + bytes(596) + rgb,
        "PSD": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, HEIGHT, WIDTH, 8, 3) + bytes(12) + struct.pack(">H", 0) + rgb,
        "SUN": struct.pack(">8I", 0x59A66A95, WIDTH, HEIGHT, 8, len(gray), 1, 0, 0) + gray,
        "XPM": f'/* XPM */\nstatic char *x[] = {{\n"{WIDTH} {HEIGHT} 256 2",\n{colors}{rows}\n}};\n'.encode(),
        "XVTHUMB": b"P7 332\n#END_OF_COMMENTS\n" + f"{WIDTH} {HEIGHT} 255\n".encode() + gray,
    }


def image_files() -> dict[str, bytes]:
    """Return the contents of the files, by a name of their format."""
    Image.init()
    files = by_hand()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Pillow 15 will not read IM
        for kind in sorted(Image.SAVE.keys() & Image.OPEN.keys() - NOT_WRITTEN):
            mode = {"BLP": "P", "MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")
            files[kind] = written(kind, mode, {"sizes": [(16, 16)]} if kind == "ICO" else {})
    return files | {name: written(*how) for name, how in VARIANTS.items()}

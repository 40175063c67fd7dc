"""The containers and codecs of clips that are decoded, as tables, and telling a container by its first bytes.

FFmpeg knows 400 formats and as many decoders, most of them for old games; every one that untrusted bytes can reach is
a risk. Its own probing also accepts playlists, which make it open further files and URLs: these never reach it.
"""

from dataclasses import dataclass

from x2vlm.data.media.formats import sniff_image
from x2vlm.data.media.iso import still_format


@dataclass(frozen=True)
class Container:
    """A container that is read: FFmpeg's name of it, and its name for people."""

    demuxer: str
    title: str
    is_indexed: bool = False  # else the keyframe is sought by reading from the start, which costs no decoding
    has_times: bool = True  # else frames are counted, at the rate that the stream says, from the first


CONTAINERS = {
    container.demuxer: container
    for container in (
        Container("mov", "MP4, QuickTime, 3GP (ISO base media)", is_indexed=True),
        Container("matroska", "WebM, Matroska", is_indexed=True),
        Container("avi", "AVI", is_indexed=True),
        Container("flv", "Flash video"),
        Container("ogg", "Ogg"),
        Container("asf", "Windows Media (ASF)"),
        Container("mpeg", "MPEG program stream (also DVD)"),
        Container("mpegts", "MPEG transport stream (188, 192 or 204 bytes a packet)"),
        Container("mpegvideo", "MPEG-1 and MPEG-2 video without a container", has_times=False),
    )
}
ANIMATIONS = {"gif": "GIF", "webp": "WebP", "png": "PNG (APNG)"}  # with more than one frame; Pillow reads them

# FFmpeg's canonical names.
VIDEO_CODECS = (
    *("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "h263", "flv1", "theora", "vvc"),
    *(
        "wmv1",
        "wmv2",
        "wmv3",
        "vc1",
        "msmpeg4v1",
        "msmpeg4v2",
        "msmpeg4v3",
        "vp6",
        "vp6a",
        "vp6f",
        "vp3",
        "svq1",
        "svq3",
    ),
    *("mjpeg", "mjpegb", "prores", "dnxhd", "cfhd", "dvvideo", "jpeg2000", "ffv1", "huffyuv", "ffvhuff", "utvideo"),
    *("rawvideo", "v210", "png", "cinepak", "indeo3", "indeo4", "indeo5", "msvideo1", "qtrle", "rpza", "h261", "dirac"),
    *("magicyuv", "lagarith", "fraps", "hap"),
)
# FFmpeg's names of decoders that look into a file before anything is decoded, beside those of the video codecs. Without
# the usual ones of sound it would read on and on for the parameters of a sound track.
_PROBED = (
    *("libdav1d", "libvpx", "libvpx-vp9", "flv", "msmpeg4", "aac", "aac_latm", "mp3", "mp3float", "mp2", "mp2float"),
    *("mp1", "mp1float", "opus", "libopus", "vorbis", "flac", "alac", "ac3", "eac3", "dca", "truehd", "mlp", "amrnb"),
    *(
        "amrwb",
        "libopencore_amrnb",
        "libopencore_amrwb",
        "wmav1",
        "wmav2",
        "wmapro",
        "wmavoice",
        "wmalossless",
        "speex",
    ),
    *(
        "nellymoser",
        "adpcm_ms",
        "adpcm_ima_wav",
        "adpcm_ima_qt",
        "adpcm_swf",
        "qdm2",
        "qcelp",
        "gsm",
        "gsm_ms",
        "mace3",
    ),
    *("mace6", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_u8", "pcm_s8"),
    *("pcm_alaw", "pcm_mulaw", "pcm_f32le", "pcm_f32be", "pcm_bluray", "pcm_dvd", "tta", "wavpack", "atrac3"),
)
CODEC_WHITELIST = ",".join(sorted({*VIDEO_CODECS, *_PROBED}))

# What else sites call a video, by its first bytes: named in the drop, never decoded.
OTHER_VIDEOS = {
    b".RMF": "RealMedia",
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01": "MXF",
    b"DKIF": "IVF",
    b"YUV4MPEG2": "YUV4MPEG2",
    b"FWS": "Flash (SWF)",
    b"CWS": "Flash (SWF)",
    b"nut/multimedia container": "NUT",
    b"\0\0\0\x01\x67": "H.264 without a container",
    b"\0\0\0\x01\x09": "H.264 without a container",
    b"\0\0\0\x01\x40\x01": "HEVC without a container",
    b"\xb7\xd8\x00\x20\x37\x49\xda\x11": "WTV",
}


def sniff_container(data: bytes) -> str:
    """FFmpeg's name of the container by its first bytes, "" if it is none of those in `CONTAINERS`."""
    if still_format(data):
        return ""  # AVIF, HEIC and their like: FFmpeg would show a tile, or the alpha plane, as a clip of one frame
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data.startswith(b"FLV\x01"):
        return "flv"
    if data.startswith(b"OggS"):
        return "ogg"
    if data.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return "asf"
    if data[:4] in (b"\0\0\x01\xba", b"\0\0\x01\xb3"):
        return "mpeg" if data[3] == 0xBA else "mpegvideo"
    return "mpegts" if ts_packet_size(data) else ""


def ts_packet_size(data: bytes) -> int:
    """188, 192 (each with a time before it, as of camcorders) or 204 (with check bytes); 0: no transport stream."""
    for size, offset in ((188, 0), (192, 4), (204, 0)):
        if data[offset : offset + 1] == b"G" and data[offset + size : offset + size + 1] == b"G":
            return size
    return 0


def sniff_animation(data: bytes) -> str:
    """Pillow's name, in small letters, of an image format that can hold several frames; "" if it is none."""
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "png" if data.startswith(b"\x89PNG\r\n\x1a\n") else ""


def other_media(data: bytes) -> tuple[str, str]:
    """The rule and the reason for bytes that are neither in `CONTAINERS` nor in `ANIMATIONS`."""
    for start, name in OTHER_VIDEOS.items():
        if data.startswith(start):
            return (
                "format_unsupported",
                f"{name}; read are {', '.join(CONTAINERS)} and animated {', '.join(ANIMATIONS)}",
            )
    if still := sniff_image(data):
        return "not_a_video", f"a still image ({still.upper()})"
    return "not_a_video", f"starts with {data[:12]!r}"

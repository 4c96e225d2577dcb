"""Source locations: line and comment of each declaration in a compiled file."""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import FileDescriptorProto

__all__ = ["SourceLocations"]


class SourceLocations:
    """Locations of one file by path in ``FileDescriptorProto`` (descriptor.proto, ``SourceCodeInfo``).

    Args:
        file: The file, with source info.
    """

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file.name
        self.locations = {tuple(location.path): location for location in file.source_code_info.location}

    def at(self, *path: int) -> str:
        """Return file and line of a declaration, or the file if it has no location."""
        location = self.locations.get(path)
        return f"{self.file}:{location.span[0] + 1}" if location else self.file

    def comment(self, *path: int) -> str:
        """Return the leading comment of a declaration, or ``""``."""
        location = self.locations.get(path)
        text = location.leading_comments if location else ""
        return "\n".join(line.removeprefix(" ") for line in text.strip("\n").splitlines()).strip()

package rafs

import (
	"fmt"
	"path/filepath"
	"strings"
)

// inlinePlaceholder is the blob id in a bootstrap that was stored inside its own
// blob: the id was not known yet.
var inlinePlaceholder = strings.Repeat("x", 64)

// CheckBlobID tells whether id may become a file name and a part of a URL:
// 1 to 64 bytes of [0-9A-Za-z._-] that do not begin with a dot.
func CheckBlobID(id string) error {
	if id == "" || len(id) > 64 {
		return fmt.Errorf("blob id of %d bytes, want 1 to 64", len(id))
	}
	if id[0] == '.' {
		return fmt.Errorf("blob id %q begins with a dot", id)
	}
	for i := range len(id) {
		switch c := id[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("blob id %q: byte %#02x is not one of [0-9A-Za-z._-]", id, c)
		}
	}
	return nil
}

// ResolveBlobID returns the id under which a blob is fetched. A bootstrap that
// was cut out of its blob (INLINED_FS_META) may not know the blob's id; the
// convention is then that the file is named by it, up to the first dot. offset
// is where the entry is in the blob table.
func ResolveBlobID(index int, offset uint64, tableID string, features uint32, path string) (string, error) {
	if features&BlobInlinedFSMeta != 0 && tableID == inlinePlaceholder {
		return NameOfBlob(index, "", path)
	}
	if tableID == inlinePlaceholder {
		return "", Damaged("blob table", offset, "the id of blob %d is a placeholder (64 x)", index)
	}
	if err := CheckBlobID(tableID); err != nil {
		return "", Damaged("blob table", offset, "blob %d: %v", index, err)
	}
	return tableID, nil
}

// NameOfBlob returns the id of the blob out of which the bootstrap at path was
// cut, from the name of its file. which says which blob of blob index that is, or
// is empty.
func NameOfBlob(index int, which, path string) (string, error) {
	stem, _, _ := strings.Cut(filepath.Base(path), ".")
	if !isHexDigest(stem) {
		if which != "" {
			which = " " + which
		}
		return "", Unsupported("blob %d: feature INLINED_FS_META: the bootstrap was cut out of its blob%s"+
			" and does not know the blob's id; name the file <blob id>.boot, not %q", index, which, filepath.Base(path))
	}
	return stem, nil
}

func isHexDigest(s string) bool {
	if len(s) != 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

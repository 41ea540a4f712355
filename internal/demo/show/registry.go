package show

import (
	"os"

	"github.com/rafsd/rafsd/internal/testregistry"
)

// repo is the repository in the registry that has the image's blob.
const repo = "demo/shop"

// registry is an OCI registry that holds a sample's blob and counts what it gives.
type registry struct {
	*testregistry.Registry
	blob string
}

func startRegistry(s *sample) (registry, error) {
	data, err := os.ReadFile(s.Blobs[0].Path)
	if err != nil {
		return registry{}, err
	}
	r, err := testregistry.Start(testregistry.Options{Auth: testregistry.Bearer})
	if err != nil {
		return registry{}, err
	}
	r.AddBlobAs(s.Blobs[0].ID, data)
	return registry{r, s.Blobs[0].ID}, nil
}

// fetched is how many bytes of the blob were handed out so far, and in how many
// answers.
func (r registry) fetched() (bytes int64, answers int) {
	c := r.Counts(r.blob)
	return c.Bytes, c.Ranges + c.Whole
}

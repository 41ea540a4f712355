// Package backends makes the place that blobs come from out of a configuration.
// It is what the daemon and the tool share.
package backends

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
	"github.com/rafsd/rafsd/blobstore/backend/localfs"
	"github.com/rafsd/rafsd/blobstore/backend/registry"
	"github.com/rafsd/rafsd/shim-integration/config"
)

// New makes the back-end that a configuration describes. It asks nobody. Here and
// in RegistryOptions alone credentials leave their Secret.
func New(c *config.Backend, log *slog.Logger) (backend.Backend, error) {
	switch c.Type {
	case "localfs":
		return localfs.New(localfs.Options{Dir: c.LocalFS.Dir, AltDirs: c.LocalFS.AltDirs, BlobFile: c.LocalFS.BlobFile})
	case "registry":
		return registry.New(RegistryOptions(c.Registry, log))
	}
	return nil, fmt.Errorf("back-end type %s: %w", c.Type, config.ErrUnsupported)
}

// RegistryOptions are the registry back-end's options that a configuration holds.
func RegistryOptions(c *config.Registry, log *slog.Logger) registry.Options {
	o := registry.Options{
		Scheme:             c.Scheme,
		Host:               c.Host.Reveal(),
		Repo:               c.Repo,
		Auth:               c.Auth.Reveal(),
		RegistryToken:      c.RegistryToken.Reveal(),
		SkipVerify:         c.SkipVerify,
		CACertFiles:        c.CACertFiles,
		Timeout:            seconds(uint64(c.Timeout)),
		ConnectTimeout:     seconds(uint64(c.ConnectTimeout)),
		RetryLimit:         int(c.RetryLimit),
		BlobURLScheme:      c.BlobURLScheme,
		BlobRedirectedHost: c.BlobRedirectedHost.Reveal(),
		Proxy: registry.Proxy{
			URL:           c.Proxy.URL.Reveal(),
			Fallback:      c.Proxy.Fallback,
			CheckInterval: seconds(c.Proxy.CheckInterval),
			UseHTTP:       c.Proxy.UseHTTP,
		},
		Log: log,
	}
	for _, m := range c.Mirrors {
		headers := make(map[string]string, len(m.Headers))
		for name, value := range m.Headers {
			headers[name] = value.Reveal()
		}
		o.Mirrors = append(o.Mirrors, registry.Mirror{
			Host:                m.Host.Reveal(),
			Headers:             headers,
			HealthCheckInterval: seconds(m.HealthCheckInterval),
			FailureLimit:        int(m.FailureLimit),
		})
	}
	return o
}

// seconds turns a configured number of seconds into a duration, the longest
// there is if it has no room.
func seconds(n uint64) time.Duration {
	const most = 1<<63 - 1
	if n > most/uint64(time.Second) {
		return most
	}
	return time.Duration(n) * time.Second
}

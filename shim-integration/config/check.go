package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Limits of nydusd that we keep, so that a text is good for both or for neither.
const (
	maxBatchSize = 0x10000000
	maxThreads   = 1024
)

// ErrUnsupported is what an error wraps that names something which a correct
// configuration may ask for and this version cannot do.
var ErrUnsupported = errors.New("not supported yet")

// Check tells what is wrong with a configuration that could be read.
func (c *Config) Check() error {
	if c.Version != 2 {
		return fmt.Errorf("key version: %d is not a known version, want 2", c.Version)
	}
	if c.Backend == nil {
		return errors.New("key backend: missing")
	}
	if err := c.Backend.check(); err != nil {
		return err
	}
	if c.Cache != nil {
		if err := c.Cache.check(); err != nil {
			return err
		}
	}
	if c.RAFS == nil {
		return errors.New("key rafs: missing")
	}
	return c.RAFS.check()
}

func (b *Backend) check() error {
	missing := func(there bool) error {
		if !there {
			return fmt.Errorf("back-end %s: key %s: missing", b.Type, b.Type)
		}
		return nil
	}
	switch b.Type {
	case "localfs":
		if b.LocalFS == nil {
			return missing(false)
		}
		if b.LocalFS.BlobFile == "" && b.LocalFS.Dir == "" {
			return errors.New("back-end localfs: one of the keys blob_file and dir must be set")
		}
	case "localdisk":
		if b.LocalDisk == nil {
			return missing(false)
		}
		return notEmpty(b.Type, "device_path", b.LocalDisk.DevicePath)
	case "oss":
		if b.OSS == nil {
			return missing(false)
		}
		return first(
			notEmpty(b.Type, "endpoint", b.OSS.Endpoint.Reveal()),
			notEmpty(b.Type, "bucket_name", b.OSS.BucketName))
	case "s3":
		if b.S3 == nil {
			return missing(false)
		}
		return first(
			notEmpty(b.Type, "region", b.S3.Region),
			notEmpty(b.Type, "bucket_name", b.S3.BucketName))
	case "registry":
		if b.Registry == nil {
			return missing(false)
		}
		return b.Registry.check()
	case "http-proxy":
		if b.HTTPProxy == nil {
			return missing(false)
		}
		addr := b.HTTPProxy.Addr.Reveal()
		if !strings.HasPrefix(addr, "http://") && !strings.HasPrefix(addr, "https://") && !filepath.IsAbs(addr) {
			return errors.New("back-end http-proxy: key addr: want http://, https:// or the absolute path of a socket")
		}
	default:
		return fmt.Errorf("key backend.type: unknown back-end type %q", clip(b.Type))
	}
	return nil
}

func (r *Registry) check() error {
	if err := first(
		notEmpty("registry", "host", r.Host.Reveal()),
		notEmpty("registry", "repo", r.Repo)); err != nil {
		return err
	}
	if err := oneOf("registry", "scheme", r.Scheme, "http", "https"); err != nil {
		return err
	}
	return oneOf("registry", "blob_url_scheme", r.BlobURLScheme, "", "http", "https")
}

// first returns the first fault there is.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func notEmpty(backend, key, value string) error {
	if value == "" {
		return fmt.Errorf("back-end %s: key %s: empty", backend, key)
	}
	return nil
}

func oneOf(backend, key, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return fmt.Errorf("back-end %s: key %s: want one of %q", backend, key, allowed)
}

func (c *Cache) check() error {
	switch c.Type {
	case "", "dummycache":
	case "blobcache", "filecache":
		if c.FileCache == nil {
			return fmt.Errorf("cache type %s: key filecache: missing", c.Type)
		}
		if c.FileCache.WorkDir == "" {
			return fmt.Errorf("cache type %s: key work_dir: empty", c.Type)
		}
	case "fscache":
		if c.FSCache == nil {
			return errors.New("cache type fscache: key fscache: missing")
		}
		if c.FSCache.WorkDir == "" {
			return errors.New("cache type fscache: key work_dir: empty")
		}
	default:
		return fmt.Errorf("key cache.type: unknown cache type %q", clip(c.Type))
	}
	return c.Prefetch.check("cache.prefetch")
}

func (r *RAFS) check() error {
	if r.Mode != "direct" && r.Mode != "cached" {
		return fmt.Errorf("key mode: want direct or cached, found %q", clip(r.Mode))
	}
	if r.BatchSize > maxBatchSize {
		return fmt.Errorf("key rafs.batch_size (amplify_io): %d is more than %d", r.BatchSize, maxBatchSize)
	}
	return r.Prefetch.check("rafs.prefetch")
}

func (p *Prefetch) check(path string) error {
	switch {
	case !p.Enable:
		return nil
	case p.BatchSize > maxBatchSize:
		return fmt.Errorf("key %s.batch_size (merging_size): %d is more than %d", path, p.BatchSize, maxBatchSize)
	case p.Threads == 0 || p.Threads > maxThreads:
		return fmt.Errorf("key %s.threads (threads_count): %d is not from 1 to %d", path, p.Threads, maxThreads)
	}
	return nil
}

// Supported tells, as an error that wraps ErrUnsupported, what the configuration
// asks for that cannot be done without showing wrong or unprotected data.
func (c *Config) Supported() error {
	switch c.Backend.Type {
	case "localfs", "registry":
	default:
		return fmt.Errorf("back-end type %s: %w", c.Backend.Type, ErrUnsupported)
	}
	if c.Overlay != nil {
		return fmt.Errorf("key overlay (a writable layer): %w", ErrUnsupported)
	}
	if c.Cache != nil && c.Cache.FileCache != nil && c.Cache.FileCache.EnableEncryption {
		return fmt.Errorf("key cache.filecache.enable_encryption: %w", ErrUnsupported)
	}
	return nil
}

// Ignored names the keys that are set and have no effect, where someone could
// expect one.
func (c *Config) Ignored() []string {
	var out []string
	add := func(set bool, key string) {
		if set {
			out = append(out, key)
		}
	}
	if r := c.Backend.Registry; r != nil {
		add(r.Proxy.DragonflySchedulerEndpoint != "", "backend.registry.proxy.dragonfly_scheduler_endpoint")
	}
	add(len(c.ExternalBackends) > 0, "external_backends")
	return out
}

package config

import "math"

// readV1 reads a text of version 1, the one that nydus-snapshotter and Kata
// hand on, into the shape of version 2.
func readV1(top object) (*Config, error) {
	top.require("device")
	top.require("mode")
	device, _ := top.object("device")
	if device.keys != nil {
		device.require("backend")
	}
	c := &Config{
		Version:          2,
		ID:               device.str("id", ""),
		Backend:          backendV1(device),
		ExternalBackends: externalBackends(device),
		Cache:            cacheV1(device),
		RAFS: &RAFS{
			Mode:            top.str("mode", ""),
			BatchSize:       top.uint("amplify_io", defaultBatchSize, math.MaxInt64),
			Validate:        top.boolean("digest_validate", false),
			VerifyMetadata:  top.boolean("verify_metadata", false),
			EnableXattr:     top.boolean("enable_xattr", false),
			IOStatsFiles:    top.boolean("iostats_files", false),
			AccessPattern:   top.boolean("access_pattern", false),
			LatestReadFiles: top.boolean("latest_read_files", false),
			Prefetch:        prefetchV1(top),
		},
	}
	if c.RAFS.Prefetch.Enable {
		c.Cache.Prefetch = c.RAFS.Prefetch
	}
	if err := top.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func backendV1(device object) *Backend {
	o, ok := device.object("backend")
	if !ok {
		return nil
	}
	o.require("type")
	o.require("config")
	out := &Backend{Type: o.str("type", "")}
	config, ok := o.object("config")
	// http-proxy came after version 1, whose conversion does not know it.
	if ok && (out.Type == "http-proxy" || !out.read(out.Type, config)) {
		o.fail("type", "unknown back-end type %q", clip(out.Type))
	}
	return out
}

func cacheV1(device object) *Cache {
	o, _ := device.object("cache")
	out := &Cache{
		Type:       o.str("type", ""),
		Compressed: o.boolean("compressed", false),
		Validate:   o.boolean("validate", false),
	}
	switch out.Type {
	case "blobcache", "filecache", "fscache":
		o.require("config")
		config, _ := o.object("config")
		if out.Type == "fscache" {
			out.FSCache = fsCache(config)
		} else {
			out.FileCache = fileCache(config)
		}
	}
	return out
}

func prefetchV1(top object) Prefetch {
	o, ok := top.object("fs_prefetch")
	if !ok {
		return Prefetch{}
	}
	return Prefetch{
		Enable:         o.boolean("enable", false),
		Threads:        o.uint("threads_count", defaultThreads, math.MaxInt64),
		BatchSize:      o.uint("merging_size", defaultPrefetchSize, math.MaxInt64),
		BandwidthLimit: o.u32("bandwidth_rate", 0),
		PrefetchAll:    o.boolean("prefetch_all", true),
		StreamPrefetch: o.boolean("stream_prefetch", false),
	}
}

//go:build tools

// Package peers names the Go programs that the interoperation tests run beside our own members.
package peers

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/server/v3"
)

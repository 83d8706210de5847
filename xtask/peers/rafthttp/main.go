// Command rafthttp runs etcd's own raft message transport without an etcd around it.
//
// It serves a peer port, does what it is told in JSON lines on stdin, and tells what happens in JSON lines on
// stdout. Messages are written as encoding/json writes raftpb.Message. It ends when stdin does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	stats "go.etcd.io/etcd/server/v3/etcdserver/api/v2stats"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Deadline of a connection and of each read and write; link heartbeats go out every third of it.
const timeout = 5 * time.Second

// command is one line of stdin.
type command struct {
	Op       string           `json:"op"`
	ID       uint64           `json:"id"`
	URL      string           `json:"url"`
	Messages []raftpb.Message `json:"messages"`
	// Bytes of the database behind a snapshot message.
	Database int64 `json:"database"`
}

// event is one line of stdout.
type event struct {
	Event   string          `json:"event"`
	Message *raftpb.Message `json:"message,omitempty"`
	ID      uint64          `json:"id,omitempty"`
	OK      bool            `json:"ok,omitempty"`
	Method  string          `json:"method,omitempty"`
	Path    string          `json:"path,omitempty"`
	Status  int             `json:"status,omitempty"`
	Error   string          `json:"error,omitempty"`
}

var (
	out   = json.NewEncoder(os.Stdout)
	outMu sync.Mutex
)

func tell(e event) {
	outMu.Lock()
	defer outMu.Unlock()
	if err := out.Encode(e); err != nil {
		os.Exit(1)
	}
}

// node is the raft that the transport talks to: it tells everything.
type node struct{}

func (node) Process(_ context.Context, m raftpb.Message) error {
	tell(event{Event: "message", Message: &m})
	return nil
}

func (node) IsIDRemoved(uint64) bool { return false }

func (node) ReportUnreachable(id uint64) { tell(event{Event: "unreachable", ID: id}) }

func (node) ReportSnapshot(id uint64, status raft.SnapshotStatus) {
	tell(event{Event: "snapshot", ID: id, OK: status == raft.SnapshotFinish})
}

// pattern yields the database both sides know: byte i is i modulo 251.
type pattern struct{ at, length int64 }

func (p *pattern) Read(buf []byte) (int, error) {
	n := 0
	for ; n < len(buf) && p.at < p.length; n++ {
		buf[n] = byte(p.at % 251)
		p.at++
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// observed tells each request to the peer port when its answer begins.
func observed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == rafthttp.ProbingPrefix {
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(&answer{ResponseWriter: w, request: r}, r)
	})
}

type answer struct {
	http.ResponseWriter
	request *http.Request
	told    bool
}

func (a *answer) WriteHeader(status int) {
	if !a.told {
		a.told = true
		tell(event{Event: "request", Method: a.request.Method, Path: a.request.URL.Path, Status: status})
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if !a.told {
		a.WriteHeader(http.StatusOK)
	}
	return a.ResponseWriter.Write(b)
}

func (a *answer) Flush() { a.ResponseWriter.(http.Flusher).Flush() }

func main() {
	id := flag.Uint64("id", 0, "member id")
	cluster := flag.Uint64("cluster", 0, "cluster id")
	snapDir := flag.String("snap-dir", "", "where received databases go")
	listen := flag.String("listen", "http://127.0.0.1:0", "peer URL to serve")
	cert := flag.String("cert", "", "certificate file")
	key := flag.String("key", "", "key file")
	ca := flag.String("ca", "", "trusted CA file")
	flag.Parse()
	if err := run(types.ID(*id), types.ID(*cluster), *snapDir, *listen, *cert, *key, *ca); err != nil {
		tell(event{Event: "failed", Error: err.Error()})
		os.Exit(1)
	}
}

func run(id, cluster types.ID, snapDir, listen, cert, key, ca string) error {
	address, err := url.Parse(listen)
	if err != nil {
		return err
	}
	var tls transport.TLSInfo
	if cert != "" {
		tls = transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: ca, ClientCertAuth: true}
	}
	listener, err := rafthttp.NewListener(*address, &tls)
	if err != nil {
		return err
	}
	own := fmt.Sprintf("%s://%s", address.Scheme, listener.Addr())
	urls, err := types.NewURLs([]string{own})
	if err != nil {
		return err
	}
	logger, err := zap.NewProduction()
	if err != nil {
		return err
	}
	t := &rafthttp.Transport{
		Logger:      logger,
		DialTimeout: timeout,
		TLSInfo:     tls,
		ID:          id,
		URLs:        urls,
		ClusterID:   cluster,
		Raft:        node{},
		Snapshotter: snap.New(logger, snapDir),
		ServerStats: stats.NewServerStats("", id.String()),
		LeaderStats: stats.NewLeaderStats(logger, id.String()),
		ErrorC:      make(chan error, 1),
	}
	if err := t.Start(); err != nil {
		return err
	}
	defer t.Stop()
	go func() {
		for err := range t.ErrorC {
			tell(event{Event: "critical", Error: err.Error()})
		}
	}()
	server := &http.Server{Handler: observed(t.Handler())}
	go server.Serve(listener)
	defer server.Close()
	tell(event{Event: "listening", Path: own})

	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 1<<20), 64<<20)
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return err
		}
		if err := obey(t, c); err != nil {
			return err
		}
	}
	return lines.Err()
}

func obey(t *rafthttp.Transport, c command) error {
	switch c.Op {
	case "add_peer":
		t.AddPeer(types.ID(c.ID), []string{c.URL})
	case "add_remote":
		t.AddRemote(types.ID(c.ID), []string{c.URL})
	case "send":
		t.Send(c.Messages)
	case "send_snapshot":
		for _, m := range c.Messages {
			body := io.NopCloser(&pattern{length: c.Database})
			t.SendSnapshot(*snap.NewMessage(m, body, c.Database))
		}
	default:
		return fmt.Errorf("unknown op %q", c.Op)
	}
	return nil
}

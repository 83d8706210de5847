// Command bench measures Go's rafthttp as the transport benchmark of this workspace measures ours: two transports
// in one process over loopback HTTP, appends of one entry, counted when the receiver's Process is called.
//
// Each line on stdin, "SIZE WINDOW MILLISECONDS", is one run, answered by one line of JSON. The workload is that of
// transport-http/benches/transport; keep the two alike.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	stats "go.etcd.io/etcd/server/v3/etcdserver/api/v2stats"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

const (
	senderID   = 1
	receiverID = 2
	// batchMax is how many messages one call of Send gets at most.
	batchMax = 64
	// stuck is when a run that makes no progress is given up.
	stuck = 10 * time.Second
)

// load is the state of a run, shared by both members.
type load struct {
	window   int64
	data     []byte
	index    uint64
	deadline time.Time

	sent, done atomic.Int64
	// limit is how few messages in flight the sender waits for: half of the window, in the end none.
	limit atomic.Int64
	// wake tells the sender that no more than that are in flight, or that the last answer is here.
	wake chan struct{}
}

// next makes the append that continues the log.
func (l *load) next() raftpb.Message {
	l.index++
	return raftpb.Message{
		Type: raftpb.MsgApp, From: senderID, To: receiverID,
		Term: 1, LogTerm: 1, Index: l.index - 1, Commit: l.index - 1,
		Entries: []raftpb.Entry{{Term: 1, Index: l.index, Data: l.data}},
	}
}

func (l *load) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// member is the raft of one transport.
type member struct {
	load *load
	own  *rafthttp.Transport
}

func (m *member) Process(_ context.Context, message raftpb.Message) error {
	l := m.load
	switch message.Type {
	case raftpb.MsgApp:
		done := l.done.Add(1)
		if l.window == 1 {
			m.own.Send([]raftpb.Message{{
				Type: raftpb.MsgAppResp, From: receiverID, To: senderID, Term: 1,
				Index: message.Index + 1,
			}})
		} else if l.sent.Load()-done == l.limit.Load() {
			l.signal()
		}
	case raftpb.MsgAppResp:
		if time.Now().Before(l.deadline) {
			l.sent.Add(1)
			m.own.Send([]raftpb.Message{l.next()})
		} else {
			l.signal()
		}
	}
	return nil
}

func (m *member) IsIDRemoved(uint64) bool                    { return false }
func (m *member) ReportUnreachable(uint64)                   {}
func (m *member) ReportSnapshot(uint64, raft.SnapshotStatus) {}

// start makes a transport and serves its port; its URL.
func start(id uint64, l *load) (*rafthttp.Transport, string, error) {
	m := &member{load: l}
	name := types.ID(id).String()
	m.own = &rafthttp.Transport{
		Logger:      zap.NewNop(),
		DialTimeout: 2 * time.Second,
		ID:          types.ID(id),
		ClusterID:   types.ID(7),
		Raft:        m,
		ServerStats: stats.NewServerStats(name, name),
		LeaderStats: stats.NewLeaderStats(zap.NewNop(), name),
	}
	if err := m.own.Start(); err != nil {
		return nil, "", err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	server := &http.Server{Handler: m.own.Handler()}
	go server.Serve(listener)
	return m.own, "http://" + listener.Addr().String(), nil
}

// figures of one run.
type figures struct {
	Messages int64  `json:"messages"`
	Ns       int64  `json:"ns"`
	CPUNs    int64  `json:"cpu_ns"`
	Allocs   uint64 `json:"allocs"`
}

func cpuNs() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func mallocs() uint64 {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	return memory.Mallocs
}

// run sends for the given time and waits until everything has arrived.
func run(from *rafthttp.Transport, l *load, size int, window int64, length time.Duration) (figures, error) {
	l.window, l.data = window, make([]byte, size)
	l.sent.Store(0)
	l.done.Store(0)
	l.limit.Store(window / 2)
	select {
	case <-l.wake:
	default:
	}
	var batches uint64
	allocs, cpu, begun := mallocs(), cpuNs(), time.Now()
	l.deadline = begun.Add(length)
	giveUp := time.After(length + stuck)
	if window == 1 {
		l.sent.Add(1)
		from.Send([]raftpb.Message{l.next()})
		select {
		case <-l.wake:
		case <-giveUp:
			return figures{}, errors.New("a message was lost")
		}
		batches = 2 * uint64(l.sent.Load())
	}
	for window > 1 {
		more := time.Now().Before(l.deadline)
		if !more {
			l.limit.Store(0)
		}
		for l.sent.Load()-l.done.Load() > l.limit.Load() {
			select {
			case <-l.wake:
			case <-giveUp:
				return figures{}, errors.New("a message was lost")
			}
		}
		if !more {
			break
		}
		for room := window - (l.sent.Load() - l.done.Load()); room > 0; {
			batch := make([]raftpb.Message, 0, min(room, batchMax))
			for len(batch) < cap(batch) {
				batch = append(batch, l.next())
			}
			room -= int64(len(batch))
			batches++
			l.sent.Add(int64(len(batch)))
			from.Send(batch)
		}
	}
	elapsed := time.Since(begun)
	messages := l.sent.Load()
	return figures{
		Messages: messages,
		Ns:       elapsed.Nanoseconds(),
		CPUNs:    cpuNs() - cpu,
		// Without what making them cost: the entries of each message and the slice of each batch.
		Allocs: mallocs() - allocs - uint64(messages) - batches,
	}, nil
}

func serve() error {
	l := &load{wake: make(chan struct{}, 1)}
	from, fromURL, err := start(senderID, l)
	if err != nil {
		return err
	}
	to, toURL, err := start(receiverID, l)
	if err != nil {
		return err
	}
	from.AddPeer(types.ID(receiverID), []string{toURL})
	to.AddPeer(types.ID(senderID), []string{fromURL})
	// The two streams each way are there once both are active and the dials have settled.
	for from.ActivePeers() == 0 || to.ActivePeers() == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(time.Second)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var size int
		var window, milliseconds int64
		if _, err := fmt.Sscan(lines.Text(), &size, &window, &milliseconds); err != nil {
			return fmt.Errorf("cannot read %q: %w", lines.Text(), err)
		}
		told, err := run(from, l, size, window, time.Duration(milliseconds)*time.Millisecond)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
			return err
		}
	}
	return lines.Err()
}

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

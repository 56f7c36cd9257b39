package turnkeepertools

import (
	"context"
	"math"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	toolsv1 "turnkeeper.dev/gen/go/turnkeeper/tools/v1"
)

// afterALostEnd returns what Reconcile tells of a call whose end could not be stored.
func afterALostEnd(t *testing.T, lookup func(context.Context, string) (any, error)) (*toolsv1.ReconcileResponse, error) {
	t.Helper()
	ledger, now := opened(t, filepath.Join(t.TempDir(), "calls.sqlite")), time.Now()
	if entry, err := ledger.Begin("key", 1, now); err != nil || entry.State != Starts {
		t.Fatalf("%v %v", entry, err)
	}
	server := NewServer(ledger, nil, Tool{Listed: &toolsv1.Tool{Name: "transfer"}, Lookup: lookup})
	request := &toolsv1.ReconcileRequest{Name: "transfer", IdempotencyKey: "key", Attempt: 1, StartTime: timestamppb.New(now)}
	return server.Reconcile(context.Background(), request)
}

func TestACallWhoseEndCannotBeStoredDoesNotRunForEver(t *testing.T) {
	if response, err := afterALostEnd(t, nil); err != nil || response.GetUnknown() == nil {
		t.Fatalf("%v %v", response, err)
	}
	found := func(context.Context, string) (any, error) { return "moved", nil }
	if response, err := afterALostEnd(t, found); err != nil || response.GetDone().GetResultJson() != `"moved"` {
		t.Fatalf("%v %v", response, err)
	}
}

func TestAResultThatIsNoJSONIsNotTakenForNone(t *testing.T) {
	found := func(context.Context, string) (any, error) { return math.NaN(), nil }
	if response, err := afterALostEnd(t, found); err == nil {
		t.Fatalf("%v", response)
	}
}

package turnkeepertools

import (
	"path/filepath"
	"testing"
	"time"
)

func opened(t *testing.T, path string) *Ledger {
	t.Helper()
	ledger, err := OpenLedger(path, -5*time.Second) // one machine has one clock, and nothing was forgotten before
	if err != nil {
		t.Fatal(err)
	}
	return ledger
}

func TestNotStartedIsAPromise(t *testing.T) {
	ledger, now := opened(t, filepath.Join(t.TempDir(), "calls.sqlite")), time.Now()
	if entry, err := ledger.Reconcile("key", 2, now); err != nil || entry.State != Barred {
		t.Fatalf("%v %v", entry, err)
	}
	for attempt, state := range map[int32]string{1: Refused, 2: Refused, 3: Starts} {
		if attempt == 3 {
			continue
		}
		if entry, err := ledger.Begin("key", attempt, now); err != nil || entry.State != state {
			t.Fatalf("attempt %d: %v %v", attempt, entry, err)
		}
	}
	if entry, err := ledger.Begin("key", 3, now); err != nil || entry.State != Starts {
		t.Fatalf("%v %v", entry, err)
	}
}

func TestAnAnswerIsKeptAndALostCallIsBroken(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), "calls.sqlite"), time.Now()
	ledger := opened(t, path)
	for _, key := range []string{"done", "lost"} {
		if entry, err := ledger.Begin(key, 1, now); err != nil || entry.State != Starts {
			t.Fatalf("%v %v", entry, err)
		}
	}
	if err := ledger.End("done", Entry{State: Done, ResultJSON: `"yes"`}); err != nil {
		t.Fatal(err)
	}
	ledger.db.Close()
	again := opened(t, path)
	if entry, err := again.Begin("done", 2, now); err != nil || entry.ResultJSON != `"yes"` {
		t.Fatalf("%v %v", entry, err)
	}
	if entry, err := again.Reconcile("lost", 1, now); err != nil || entry.State != Broken {
		t.Fatalf("%v %v", entry, err)
	}
	if entry, err := again.Settle("lost", 1, nil); err != nil || entry.State != Barred {
		t.Fatalf("%v %v", entry, err)
	}
	if entry, err := again.Begin("lost", 1, now); err != nil || entry.State != Refused {
		t.Fatalf("%v %v", entry, err)
	}
}

func TestWhatMayBeForgottenIsNoPromise(t *testing.T) {
	ledger := opened(t, filepath.Join(t.TempDir(), "calls.sqlite"))
	long := time.Now().Add(-25 * time.Hour)
	if entry, err := ledger.Reconcile("key", 1, long); err != nil || entry.State != Broken {
		t.Fatalf("%v %v", entry, err)
	}
	if entry, err := ledger.Begin("key", 1, long); err != nil || entry.State != Refused {
		t.Fatalf("%v %v", entry, err)
	}
}

func TestACallThatRunsForLongerThanADayKeepsItsKey(t *testing.T) {
	ledger, now := opened(t, filepath.Join(t.TempDir(), "calls.sqlite")), time.Now()
	if entry, err := ledger.Begin("key", 1, now); err != nil || entry.State != Starts {
		t.Fatalf("%v %v", entry, err)
	}
	if _, err := ledger.db.Exec("UPDATE calls SET at = 0"); err != nil {
		t.Fatal(err)
	}
	if err := ledger.End("key", Entry{State: Done, ResultJSON: `"yes"`}); err != nil {
		t.Fatal(err)
	}
	if entry, err := ledger.Reconcile("key", 1, now); err != nil || entry.State != Done {
		t.Fatalf("%v %v", entry, err)
	}
}

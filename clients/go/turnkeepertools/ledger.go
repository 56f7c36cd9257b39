// Package turnkeepertools serves tools to Turnkeeper over gRPC, with a ledger of keys that makes each call take effect
// once. It remembers what became of each key for 24 hours; every answer is on the disk before it is given.
package turnkeepertools

import (
	"database/sql"
	"errors"
	"time"

	_ "modernc.org/sqlite" // the driver, without cgo
)

// States of a key. Barred: no start up to its attempt may run. Broken: it ran, and nothing tells how it ended.
const (
	Barred  = "BARRED"
	Running = "RUNNING"
	Broken  = "BROKEN"
	Done    = "DONE"
	Failed  = "FAILED"
	Starts  = "STARTS"
	Refused = "REFUSED"
)

const keep = 24 * time.Hour

// Entry is what is known of a key.
type Entry struct {
	State      string
	ResultJSON string
	TookEffect bool
}

// Ledger remembers keys in SQLite. One process has the file at a time.
type Ledger struct {
	db      *sql.DB
	process string
	skew    time.Duration
}

// OpenLedger opens or makes the file. Skew is by how much the clock of a caller may differ.
func OpenLedger(path string, skew time.Duration) (*Ledger, error) {
	db, err := sql.Open("sqlite", path+"?_pragma=locking_mode(EXCLUSIVE)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	_, err = db.Exec(`CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, attempt INTEGER NOT NULL, state TEXT NOT NULL,
		result TEXT NOT NULL, took_effect INTEGER NOT NULL, process TEXT NOT NULL, at REAL NOT NULL);
		CREATE TABLE IF NOT EXISTS born (one INTEGER PRIMARY KEY, at REAL NOT NULL)`)
	if err == nil {
		_, err = db.Exec("INSERT OR IGNORE INTO born VALUES (1, ?)", seconds(time.Now()))
	}
	return &Ledger{db: db, process: time.Now().Format(time.RFC3339Nano), skew: skew}, err
}

// Begin returns Starts, stored as Running; Refused; or what is known of an earlier start that this one repeats.
func (l *Ledger) Begin(key string, attempt int32, start time.Time) (entry Entry, err error) {
	err = l.atomically(func(tx *sql.Tx) error {
		before, known, exists, err := l.known(tx, key)
		if err != nil {
			return err
		}
		if attempt < before || (!exists && !l.remembers(tx, start.Add(l.skew.Abs()))) {
			entry = Entry{State: Refused}
			return nil
		}
		entry = known
		switch {
		case known.State == Done || known.State == Failed:
			return nil
		case (!exists || attempt > before) && known.State != Running: // after Broken the caller has decided it
			entry = Entry{State: Starts}
			return l.put(tx, key, attempt, Entry{State: Running})
		case known.State == Barred:
			entry = Entry{State: Refused}
		}
		return nil
	})
	return entry, err
}

// End stores how a Running call ended.
func (l *Ledger) End(key string, entry Entry) error {
	return l.atomically(func(tx *sql.Tx) error {
		before, known, _, err := l.known(tx, key)
		if err != nil || known.State != Running {
			return err
		}
		return l.put(tx, key, before, entry)
	})
}

// Reconcile returns what became of the key. Barred is a promise, stored before it is given.
func (l *Ledger) Reconcile(key string, attempt int32, start time.Time) (entry Entry, err error) {
	err = l.atomically(func(tx *sql.Tx) error {
		before, known, exists, err := l.known(tx, key)
		if err != nil {
			return err
		}
		entry = known
		if !exists {
			entry = Entry{State: Barred}
			if !l.remembers(tx, start.Add(-l.skew)) {
				entry = Entry{State: Broken}
				return nil
			}
		}
		if entry.State == Barred && attempt > before {
			return l.put(tx, key, attempt, entry)
		}
		return nil
	})
	return entry, err
}

// Settle stores what the service's own records tell of a Broken call: its result, or nil if it never took effect.
func (l *Ledger) Settle(key string, attempt int32, result *string) (entry Entry, err error) {
	err = l.atomically(func(tx *sql.Tx) error {
		before, known, _, err := l.known(tx, key)
		if entry = known; err != nil || known.State != Broken {
			return err
		}
		entry = Entry{State: Barred}
		if result != nil {
			entry = Entry{State: Done, ResultJSON: *result, TookEffect: true}
		}
		return l.put(tx, key, max(before, attempt), entry)
	})
	return entry, err
}

func (l *Ledger) known(tx *sql.Tx, key string) (attempt int32, entry Entry, exists bool, err error) {
	var process string
	row := tx.QueryRow("SELECT attempt, state, result, took_effect, process FROM calls WHERE key = ?", key)
	err = row.Scan(&attempt, &entry.State, &entry.ResultJSON, &entry.TookEffect, &process)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, Entry{}, false, nil
	}
	if entry.State == Running && process != l.process {
		entry.State = Broken
	}
	return attempt, entry, true, err
}

func (l *Ledger) put(tx *sql.Tx, key string, attempt int32, entry Entry) error {
	_, err := tx.Exec("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)",
		key, attempt, entry.State, entry.ResultJSON, entry.TookEffect, l.process, seconds(time.Now()))
	return err
}

// remembers returns true if a start of that time could not be forgotten: else nothing certain can be told of it.
func (l *Ledger) remembers(tx *sql.Tx, start time.Time) bool {
	var born float64
	if tx.QueryRow("SELECT at FROM born").Scan(&born) != nil {
		return false
	}
	return seconds(start) >= max(born, seconds(time.Now().Add(-keep)))
}

func (l *Ledger) atomically(work func(*sql.Tx) error) error {
	tx, err := l.db.Begin()
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	old := "DELETE FROM calls WHERE at < ? AND NOT (state = ? AND process = ?)" // what still runs is kept
	if _, err := tx.Exec(old, seconds(time.Now().Add(-keep-2*l.skew)), Running, l.process); err != nil {
		return err
	}
	if err := work(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func seconds(at time.Time) float64 { return float64(at.UnixMilli()) / 1000 }

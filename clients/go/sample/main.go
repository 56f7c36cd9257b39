// A sample: an account book whose transfers take effect once. Its own table tells what became of a lost call.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"turnkeeper.dev/clients/go/turnkeepertools"
	toolsv1 "turnkeeper.dev/gen/go/turnkeeper/tools/v1"
)

const schema = `{"type":"object","properties":{"to":{"type":"string"},"amount":{"type":"integer"}},
"required":["to","amount"],"additionalProperties":false}`

type book struct{ db *sql.DB }

func (b book) transfer(ctx context.Context, arguments json.RawMessage, call turnkeepertools.Call) (any, error) {
	var values struct {
		To     string
		Amount int64
	}
	if err := json.Unmarshal(arguments, &values); err != nil || values.Amount <= 0 {
		return nil, &turnkeepertools.Failure{Message: "The amount must be above 0."}
	}
	call.Progress("writing the transfer into the book")
	// Effect and key in one row: after a crash the key tells whether it took effect.
	if _, err := b.db.ExecContext(ctx, "INSERT INTO transfers VALUES (?, ?, ?)", call.Key, values.To, values.Amount); err != nil {
		return nil, err
	}
	return fmt.Sprintf("%d to %s: done", values.Amount, values.To), nil
}

func (b book) ofKey(ctx context.Context, key string) (any, error) {
	var payee string
	var amount int64
	err := b.db.QueryRowContext(ctx, "SELECT payee, amount FROM transfers WHERE key = ?", key).Scan(&payee, &amount)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return fmt.Sprintf("%d to %s: done", amount, payee), err
}

func main() {
	port := flag.Int("port", 50061, "port to listen on")
	folder := flag.String("folder", ".", "folder of its files")
	keys := flag.String("key-set", "", "URL of Turnkeeper's keys; without it every caller is trusted")
	skew := flag.Duration("skew", time.Minute, "by how much the clock of a caller may differ")
	flag.Parse()
	ledger, err := turnkeepertools.OpenLedger(filepath.Join(*folder, "calls.sqlite"), *skew)
	check(err)
	db, err := sql.Open("sqlite", filepath.Join(*folder, "book.sqlite")+"?_pragma=synchronous(FULL)")
	check(err)
	db.SetMaxOpenConns(1)
	_, err = db.Exec("CREATE TABLE IF NOT EXISTS transfers (key TEXT PRIMARY KEY, payee TEXT, amount INTEGER)")
	check(err)
	var verify turnkeepertools.Verifier
	if *keys != "" {
		verify = turnkeepertools.TokensOf("ledger", *keys)
	}
	transfers := book{db}
	listed := &toolsv1.Tool{Name: "transfer", Description: "Transfers an amount to a person. It cannot be taken back.", SchemaJson: schema}
	tool := turnkeepertools.Tool{Listed: listed, Run: transfers.transfer, Lookup: transfers.ofKey}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	check(err)
	server := grpc.NewServer()
	toolsv1.RegisterToolServiceServer(server, turnkeepertools.NewServer(ledger, verify, tool))
	fmt.Printf("tools on %s\n", listener.Addr())
	check(server.Serve(listener))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

package turnkeepertools

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	toolsv1 "turnkeeper.dev/gen/go/turnkeeper/tools/v1"
)

const resultBytes = 64 * 1024

// Call is what a tool may know about its call.
type Call struct {
	Key      string
	Attempt  int32
	Claims   map[string]any // of the verified token
	Progress func(string)   // sends a line for people; its caller may be gone
}

// Failure is a tool's failure with a message for the model.
type Failure struct {
	Message    string
	TookEffect bool // it has changed something all the same
}

func (f *Failure) Error() string { return f.Message }

// Tool is one tool. Lookup, if it is set, returns the result of the call that took effect under a key, or nil if none
// did and none still can: it answers for calls that were lost with the process. Run goes on to its end also when its
// caller is gone.
type Tool struct {
	Listed *toolsv1.Tool
	Run    func(ctx context.Context, arguments json.RawMessage, call Call) (any, error)
	Lookup func(ctx context.Context, key string) (any, error)
}

type run struct {
	attempt int32
	ended   chan struct{}
	entry   Entry
	lines   chan string
}

// Server implements ToolService on a ledger of keys.
type Server struct {
	toolsv1.UnimplementedToolServiceServer
	ledger *Ledger
	verify Verifier
	tools  map[string]Tool
	mutex  sync.Mutex
	runs   map[string]*run
}

// NewServer returns a server. Verify nil trusts every caller.
func NewServer(ledger *Ledger, verify Verifier, tools ...Tool) *Server {
	server := &Server{ledger: ledger, verify: verify, tools: map[string]Tool{}, runs: map[string]*run{}}
	for _, tool := range tools {
		server.tools[tool.Listed.Name] = tool
	}
	return server
}

// ListTools lists the tools.
func (s *Server) ListTools(ctx context.Context, _ *toolsv1.ListToolsRequest) (*toolsv1.ListToolsResponse, error) {
	if _, err := s.claims(ctx, nil); err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	response := &toolsv1.ListToolsResponse{}
	for _, tool := range s.tools {
		response.Tools = append(response.Tools, tool.Listed)
	}
	return response, nil
}

// CallTool runs a tool once for each key. A start that is refused is ABORTED: the proof that it had no effect.
func (s *Server) CallTool(request *toolsv1.CallToolRequest, stream grpc.ServerStreamingServer[toolsv1.CallToolResponse]) error {
	claims, err := s.claims(stream.Context(), map[string]any{"key": request.IdempotencyKey, "attempt": request.Attempt,
		"tool": request.Name, "arguments_sha256": hash(request.ArgumentsJson)})
	tool, found := s.tools[request.Name]
	if err != nil {
		return status.Error(codes.Aborted, err.Error())
	} else if !found || request.Attempt < 1 || request.IdempotencyKey == "" {
		return status.Error(codes.Aborted, "there is no such tool, or it has no key or attempt")
	}
	running, entry, err := s.begin(tool, request, claims)
	switch {
	case err != nil:
		return status.Error(codes.Unknown, err.Error())
	case running != nil:
		return follow(running, stream)
	case entry.State == Refused:
		return status.Error(codes.Aborted, "this start was given up before it came, or is too old; it did not run")
	case entry.State == Done || entry.State == Failed:
		return stream.Send(response(entry))
	}
	return status.Error(codes.Unknown, "the call was lost in the middle")
}

// Reconcile tells what became of a call.
func (s *Server) Reconcile(ctx context.Context, request *toolsv1.ReconcileRequest) (*toolsv1.ReconcileResponse, error) {
	if _, err := s.claims(ctx, map[string]any{"key": request.IdempotencyKey, "attempt": request.Attempt, "tool": request.Name}); err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	entry, err := s.state(request)
	if tool := s.tools[request.Name]; err == nil && entry.State == Broken && tool.Lookup != nil {
		var found any
		if found, err = tool.Lookup(ctx, request.IdempotencyKey); err == nil {
			entry, err = s.settle(request, found)
		}
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return answer(entry), nil
}

// state returns what the ledger has. A call that runs there and not here has ended, which could not be stored.
func (s *Server) state(request *toolsv1.ReconcileRequest) (Entry, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	key := request.IdempotencyKey
	entry, err := s.ledger.Reconcile(key, request.Attempt, started(request.StartTime))
	if err == nil && entry.State == Running && s.runs[key] == nil {
		entry = Entry{State: Broken}
		err = s.ledger.End(key, entry)
	}
	return entry, err
}

// settle stores what a lookup found. A result that JSON cannot hold is an error: it did take effect.
func (s *Server) settle(request *toolsv1.ReconcileRequest, found any) (Entry, error) {
	result := text(found)
	if found != nil && result == nil {
		return Entry{}, errors.New("the result of the lookup cannot be written as JSON")
	}
	return s.ledger.Settle(request.IdempotencyKey, request.Attempt, result)
}

// begin returns the run to follow, or what the ledger answers.
func (s *Server) begin(tool Tool, request *toolsv1.CallToolRequest, claims map[string]any) (*run, Entry, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	key := request.IdempotencyKey
	if running := s.runs[key]; running != nil && request.Attempt >= running.attempt {
		return running, Entry{}, nil
	}
	entry, err := s.ledger.Begin(key, request.Attempt, started(request.StartTime))
	if err != nil || entry.State != Starts {
		return nil, entry, err
	}
	running := &run{attempt: request.Attempt, ended: make(chan struct{}), lines: make(chan string, 64)}
	s.runs[key] = running
	go s.work(tool, request, claims, running)
	return running, entry, nil
}

func (s *Server) work(tool Tool, request *toolsv1.CallToolRequest, claims map[string]any, running *run) {
	progress := func(line string) {
		select {
		case running.lines <- line:
		default:
		}
	}
	call := Call{Key: request.IdempotencyKey, Attempt: request.Attempt, Claims: claims, Progress: progress}
	running.entry = ended(tool.Run(context.Background(), json.RawMessage(request.ArgumentsJson), call))
	if err := s.ledger.End(request.IdempotencyKey, running.entry); err != nil {
		running.entry = Entry{State: Broken}
	}
	s.mutex.Lock()
	delete(s.runs, request.IdempotencyKey)
	s.mutex.Unlock()
	close(running.ended)
}

func (s *Server) claims(ctx context.Context, expected map[string]any) (map[string]any, error) {
	if s.verify == nil {
		return nil, nil
	}
	incoming, _ := metadata.FromIncomingContext(ctx)
	return s.verify(incoming.Get("authorization"), expected)
}

func follow(running *run, stream grpc.ServerStreamingServer[toolsv1.CallToolResponse]) error {
	for {
		select {
		case line := <-running.lines:
			progress := &toolsv1.Progress{Message: line}
			if err := stream.Send(&toolsv1.CallToolResponse{Kind: &toolsv1.CallToolResponse_Progress{Progress: progress}}); err != nil {
				return err
			}
		case <-running.ended:
			if running.entry.State == Broken {
				return status.Error(codes.Unknown, "its end could not be stored")
			}
			return stream.Send(response(running.entry))
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func ended(value any, err error) Entry {
	if failure, ok := err.(*Failure); ok {
		return Entry{State: Failed, ResultJSON: message(failure.Message), TookEffect: failure.TookEffect}
	} else if err != nil {
		return Entry{State: Failed, ResultJSON: message("The tool failed."), TookEffect: true}
	}
	result := text(value)
	if result == nil || len(*result) > resultBytes {
		return Entry{State: Failed, ResultJSON: message("The result is too large, or no JSON."), TookEffect: true}
	}
	return Entry{State: Done, ResultJSON: *result, TookEffect: true}
}

// text returns the value as JSON; nil for no value, and for one that JSON cannot hold.
func text(value any) *string {
	encoded, err := json.Marshal(value)
	if value == nil || err != nil {
		return nil
	}
	result := string(encoded)
	return &result
}

func message(words string) string { return *text(map[string]string{"error": words}) }

func started(at *timestamppb.Timestamp) time.Time {
	if at == nil {
		return time.Time{}
	}
	return at.AsTime()
}

func response(entry Entry) *toolsv1.CallToolResponse {
	result := &toolsv1.Result{ResultJson: entry.ResultJSON, Failed: entry.State != Done}
	return &toolsv1.CallToolResponse{Kind: &toolsv1.CallToolResponse_Result{Result: result}}
}

func answer(entry Entry) *toolsv1.ReconcileResponse {
	switch entry.State {
	case Barred:
		return &toolsv1.ReconcileResponse{State: &toolsv1.ReconcileResponse_NotStarted{NotStarted: &toolsv1.NotStarted{}}}
	case Running:
		retry := durationpb.New(500 * time.Millisecond)
		return &toolsv1.ReconcileResponse{State: &toolsv1.ReconcileResponse_Running{Running: &toolsv1.Running{RetryAfter: retry}}}
	case Done:
		return &toolsv1.ReconcileResponse{State: &toolsv1.ReconcileResponse_Done{Done: &toolsv1.Done{ResultJson: entry.ResultJSON}}}
	case Failed:
		failed := &toolsv1.Failed{ResultJson: entry.ResultJSON, TookEffect: entry.TookEffect}
		return &toolsv1.ReconcileResponse{State: &toolsv1.ReconcileResponse_Failed{Failed: failed}}
	}
	return &toolsv1.ReconcileResponse{State: &toolsv1.ReconcileResponse_Unknown{Unknown: &toolsv1.Unknown{}}}
}

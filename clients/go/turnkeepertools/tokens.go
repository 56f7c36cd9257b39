package turnkeepertools

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Verifier returns the claims of a call's token. It fails unless the token is valid and its claims are as expected.
type Verifier func(authorization []string, expected map[string]any) (map[string]any, error)

type keySet struct {
	url     string
	mutex   sync.Mutex
	keys    map[string]ed25519.PublicKey
	fetched time.Time
}

// TokensOf returns a verifier by the keys that Turnkeeper publishes at the URL. Audience is the server's name in
// Turnkeeper's catalogue.
func TokensOf(audience, url string) Verifier {
	set := &keySet{url: url}
	options := []jwt.ParserOption{jwt.WithValidMethods([]string{"EdDSA"}), jwt.WithAudience(audience),
		jwt.WithIssuer("turnkeeper"), jwt.WithExpirationRequired(), jwt.WithLeeway(5 * time.Second)}
	return func(authorization []string, expected map[string]any) (map[string]any, error) {
		token, isBearer := strings.CutPrefix(strings.Join(authorization, ""), "Bearer ")
		if !isBearer {
			return nil, errors.New("the call has no token")
		}
		claims := jwt.MapClaims{}
		if _, err := jwt.ParseWithClaims(token, claims, set.key, options...); err != nil {
			return nil, fmt.Errorf("the token is not valid: %w", err)
		}
		for name, value := range expected {
			if fmt.Sprint(claims[name]) != fmt.Sprint(value) {
				return nil, fmt.Errorf("the token is for another %s", name)
			}
		}
		return claims, nil
	}
}

// key returns the token's key. An unknown one has the set fetched anew, once in ten seconds at most.
func (s *keySet) key(token *jwt.Token) (any, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	id, _ := token.Header["kid"].(string)
	age := time.Since(s.fetched)
	if _, known := s.keys[id]; age > 5*time.Minute || (!known && age > 10*time.Second) {
		if err := s.fetch(); err != nil {
			return nil, err
		}
	}
	if key, known := s.keys[id]; known {
		return key, nil
	}
	return nil, errors.New("its key is not published")
}

func (s *keySet) fetch() error {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(s.url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var set struct {
		Keys []struct{ Kid, Kty, Crv, X string }
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, response.Body, 1<<20)).Decode(&set); err != nil {
		return err
	}
	keys := map[string]ed25519.PublicKey{}
	for _, key := range set.Keys {
		raw, err := base64.RawURLEncoding.DecodeString(key.X)
		if err == nil && key.Kty == "OKP" && key.Crv == "Ed25519" && len(raw) == ed25519.PublicKeySize {
			keys[key.Kid] = raw
		}
	}
	s.keys, s.fetched = keys, time.Now()
	return nil
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rafsd/rafsd/blobstore/backend"
)

// login is a user and password; login0 is nobody.
type login struct{ user, password string }

var login0 login

func (l login) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(l.user+":"+l.password))
}

// auth holds the credentials for one route and what was made of them.
type auth struct {
	client *http.Client
	login  login
	repo   string

	token chan struct{} // capacity 1: guards what is below, also while a token is fetched
	held  held
}

// held is the current Authorization header and where it came from.
type held struct {
	header  string
	asked   *challenge // that the header answers
	refresh time.Time  // when to fetch the next token; zero = when this one is refused
}

func newAuth(c *http.Client, l login, registryToken, repo string) *auth {
	a := &auth{client: c, login: l, repo: repo, token: make(chan struct{}, 1)}
	if registryToken != "" {
		a.held = held{header: "Bearer " + registryToken}
	}
	return a
}

func (a *auth) lock(ctx context.Context) error {
	select {
	case a.token <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *auth) unlock() { <-a.token }

// do sends a request of the route's origin, which has no body, with what
// credentials there are, and once more with new ones if these are refused.
func (a *auth) do(req *http.Request) (*http.Response, error) {
	header, err := a.current(req)
	if err != nil {
		return nil, err
	}
	resp, err := a.send(req, header)
	if err != nil || resp.StatusCode != http.StatusUnauthorized && (resp.StatusCode != http.StatusForbidden || header == "") {
		return resp, err
	}
	next, err := a.renew(req, header, parseChallenges(resp.Header.Values("WWW-Authenticate")))
	if err != nil {
		drain(resp)
		return nil, err
	}
	if next == "" {
		return resp, nil // there is nothing else to offer
	}
	drain(resp)
	return a.send(req, next)
}

func (a *auth) send(req *http.Request, header string) (*http.Response, error) {
	if header != "" {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", header)
	}
	return a.client.Do(req)
}

// current returns the header to send, renewed if its time is nearly over. A
// renewal that fails leaves the old one: it may still do.
func (a *auth) current(req *http.Request) (string, error) {
	if err := a.lock(req.Context()); err != nil {
		return "", err
	}
	defer a.unlock()
	h := &a.held
	if h.header != "" && !h.refresh.IsZero() && time.Now().After(h.refresh) {
		if fresh, err := a.fetch(req, h.asked); err == nil {
			*h = fresh
		} else {
			h.refresh = time.Now().Add(time.Second)
		}
	}
	return h.header, nil
}

// renew answers a challenge after the header used was refused. It returns
// nothing when there is nothing new to offer.
func (a *auth) renew(req *http.Request, used string, asked []challenge) (string, error) {
	if err := a.lock(req.Context()); err != nil {
		return "", err
	}
	defer a.unlock()
	if a.held.header != used {
		return a.held.header, nil // somebody else was faster
	}
	if len(asked) == 0 && a.held.asked != nil {
		asked = []challenge{*a.held.asked} // a plain 403 for a token that ran out
	}
	for i := range asked {
		switch c := &asked[i]; c.scheme {
		case "bearer":
			h, err := a.fetch(req, c)
			if err != nil {
				return "", err
			}
			a.held = h
			return h.header, nil
		case "basic":
			if a.login == login0 || used == a.login.basic() {
				continue
			}
			a.held = held{header: a.login.basic(), asked: c}
			return a.held.header, nil
		}
	}
	return "", nil
}

// maxToken bounds the answer of a token service.
const maxToken = 256 << 10

// fetch asks the token service of a challenge for a token.
func (a *auth) fetch(req *http.Request, c *challenge) (held, error) {
	realm, err := url.Parse(c.realm)
	if err != nil || realm.Host == "" || realm.User != nil || realm.Scheme != "https" && realm.Scheme != "http" {
		return held{}, backend.Errorf(backend.Denied, "%s names a token service that is no address", show(req.URL))
	}
	if realm.Scheme == "http" && req.URL.Scheme == "https" {
		return held{}, backend.Errorf(backend.Denied, "%s names a token service without TLS (%s), which gets no credentials", show(req.URL), show(realm))
	}
	q := realm.Query()
	if c.service != "" {
		q.Set("service", c.service)
	}
	scope := c.scope
	if scope == "" {
		scope = "repository:" + a.repo + ":pull"
	}
	q.Set("scope", scope)
	realm.RawQuery = q.Encode()
	tr := (&http.Request{Method: http.MethodGet, URL: realm, Host: realm.Host, Header: http.Header{
		"User-Agent": req.Header.Values("User-Agent"),
	}}).WithContext(req.Context())
	if a.login != login0 {
		tr.Header.Set("Authorization", a.login.basic())
	}
	start := time.Now()
	resp, err := a.client.Do(tr)
	if err != nil {
		return held{}, transportError(req.Context(), realm, err)
	}
	defer drain(resp)
	defer limitBody(resp)()
	if resp.StatusCode != http.StatusOK {
		return held{}, statusError(resp, realm)
	}
	var doc struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxToken)).Decode(&doc); err != nil {
		return held{}, backend.Errorf(backend.Temporary, "%s: the answer is not a token", show(realm))
	}
	token := doc.Token
	if token == "" {
		token = doc.AccessToken
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return held{}, backend.Errorf(backend.Temporary, "%s: the answer holds no token", show(realm))
	}
	h := held{header: "Bearer " + token, asked: c}
	if doc.ExpiresIn > 0 && doc.ExpiresIn < 1e9 {
		h.refresh = start.Add(time.Duration(doc.ExpiresIn * 0.75 * float64(time.Second)))
	}
	return h, nil
}

// challenge is one part of a WWW-Authenticate header.
type challenge struct {
	scheme                string // lower case
	realm, service, scope string
}

// parseChallenges parses WWW-Authenticate headers: any number of challenges in
// one header or several, with token or quoted values. What it cannot make sense
// of it passes over.
func parseChallenges(headers []string) (all []challenge) {
	for _, s := range headers {
		var cur *challenge
		for s != "" {
			s = strings.TrimLeft(s, " \t,")
			word, rest := cutToken(s)
			if word == "" {
				break
			}
			if !strings.HasPrefix(rest, "=") { // a scheme
				if len(all) == 8 {
					return all
				}
				all = append(all, challenge{scheme: strings.ToLower(word)})
				cur = &all[len(all)-1]
				s = rest
				continue
			}
			var value string
			value, s = cutValue(rest[1:])
			if cur == nil {
				continue
			}
			switch strings.ToLower(word) {
			case "realm":
				cur.realm = value
			case "service":
				cur.service = value
			case "scope":
				cur.scope = value
			}
		}
	}
	return all
}

func cutToken(s string) (token, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool {
		return !('0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
	if i < 0 {
		i = len(s)
	}
	return s[:i], s[i:]
}

func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, ", \t")
		if i < 0 {
			i = len(s)
		}
		return s[:i], s[i:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// String keeps secrets out of whatever prints a login.
func (l login) String() string { return "login" }

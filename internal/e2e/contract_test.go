package e2e

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// statements is how many statements the contract with the daemon's callers has.
const statements = 60

// TestContractIsWhole: every statement of the contract has a test that bears its
// number, in the packages that the callers reach. A test may bear several.
func TestContractIsWhole(t *testing.T) {
	prefix := regexp.MustCompile(`^Test(_?L\d\d)+`) // TestL38L39_What, TestL20_L21_What
	number := regexp.MustCompile(`L(\d\d)`)
	found := map[int][]string{}
	for _, root := range []string{"../../cmd/rafsd", "../../shim-integration", "."} {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				f, ok := decl.(*ast.FuncDecl)
				if !ok || f.Recv != nil || !prefix.MatchString(f.Name.Name) {
					continue
				}
				numbers := prefix.FindString(f.Name.Name)
				for _, m := range number.FindAllStringSubmatch(numbers, -1) {
					n, err := strconv.Atoi(m[1])
					if err != nil {
						return err
					}
					found[n] = append(found[n], fmt.Sprintf("%s in %s", f.Name.Name, path))
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for n := 1; n <= statements; n++ {
		if len(found[n]) == 0 {
			t.Errorf("statement L%02d has no test", n)
		}
		delete(found, n)
	}
	for n, tests := range found {
		t.Errorf("the contract has no statement L%02d: %v", n, tests)
	}
}
